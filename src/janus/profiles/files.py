"""Reads profile files; what is wrong in one is told by file and key, with what to do about it."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import tomllib
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from janus.core.exchange_cost import LinkCost
from janus.core.planning.hardware import Device, Figure, HardwareProfile
from janus.core.planning.host import Host
from janus.errors import ConfigError
from janus.profiles.schema import VERSION, DeviceTable, FigureTable, HostTable, LinkTable, Number, ProfileTable

_SHIPPED = Path(__file__).with_name("shipped")
_WHERE = re.compile(r"^(?P<problem>.*?)(?: - at `\$\.?(?P<key>.*)`)?$", re.DOTALL)
T = TypeVar("T", bound=msgspec.Struct)
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`")
_HELP = "docs/planning.md has the format"
#: What a key is when it is not given; that needs no source.
_DEFAULTS = {field.name: field.default for kind in (Device, Host) for field in dataclasses.fields(kind)}


def shipped() -> list[str]:
    """Return the names of the profiles that come with Janus."""
    return sorted(path.stem for path in _SHIPPED.glob("*.toml"))


def load_profile(name_or_path: str | Path) -> HardwareProfile:
    """Return the profile of a name that is shipped, or in a file.

    Raises:
        ConfigError: there is none, or it says something that makes no sense; names file and key.
    """
    path = Path(name_or_path)
    if str(name_or_path).lower() in shipped():
        path = _SHIPPED / f"{str(name_or_path).lower()}.toml"
    elif not path.is_file():
        near = difflib.get_close_matches(str(name_or_path).lower(), shipped(), n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        names = ", ".join(shipped())
        raise ConfigError(
            "hardware", f"{str(name_or_path)!r} is neither a file nor a profile", f"{hint}those shipped are {names}"
        )
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), f"cannot be read ({error})", "give a TOML file") from error
    return parse(text, where=str(path))


def parse(text: str, *, where: str) -> HardwareProfile:
    """As ``load_profile``, of the text of a file that errors call ``where``."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(where, f"is no TOML: {error}", "correct the line that it names") from error
    _check_version(raw, where)
    table = _convert(raw, ProfileTable, where)
    reader = _Reader(where, published=table.kind == "published")
    devices = {name: reader.device(name, device) for name, device in table.device.items()}
    intra, inter = reader.link("intra", table.intra), reader.link("inter", table.inter)
    peers = reader.link("peers", table.peers) if table.peers is not None else None
    host = reader.host(table.host)
    try:
        return HardwareProfile(
            name=table.name,
            kind=table.kind,
            about=table.about,
            devices=devices,
            intra=intra,
            inter=inter,
            peers=peers,
            host=host,
            devices_per_node=table.devices_per_node,
            links_per_node=table.links_per_node,
            figures=reader.figures,
            measured=table.measured,
        )
    except ConfigError as error:
        raise ConfigError(
            f"{where}: {error.field.removeprefix(table.name + '.')}", error.problem, error.remedy
        ) from error


class _Reader:
    """Turns tables into what the planner reckons with, and keeps where each number comes from."""

    def __init__(self, where: str, *, published: bool) -> None:
        self._where = where
        self._published = published
        self.figures: dict[str, Figure] = {}

    def device(self, name: str, raw: dict[str, Any]) -> Device:
        """Return the device of ``[device.name]``."""
        place = f"device.{name}"
        given = msgspec.structs.asdict(_convert(raw, DeviceTable, self._where, place))
        cores = given.pop("shared_cores")
        numbers = self._numbers(name, place, given)
        try:
            return Device(name=name, shared_cores=cores, **numbers)
        except ConfigError as error:
            raise ConfigError(f"{self._where}: device.{error.field}", error.problem, error.remedy) from error

    def link(self, name: str, table: LinkTable) -> LinkCost:
        """Return the costs of ``[name]``."""
        costs = self._numbers(name, name, msgspec.structs.asdict(table))
        for key, value in costs.items():
            if value < 0:
                raise ConfigError(f"{self._where}: {name}.{key}", f"is {value}", "give 0 or more seconds")
        return LinkCost(**costs)

    def host(self, table: HostTable | None) -> Host:
        """Return what ``[host]`` says; without one, instances share no machine."""
        if table is None:
            return Host()
        given = msgspec.structs.asdict(table)
        cores = given.pop("cores")
        if cores < 1:
            raise ConfigError(f"{self._where}: host.cores", f"is {cores}", "give at least 1, or leave out [host]")
        numbers = self._numbers("host", "host", given)
        try:
            return Host(cores=cores, **numbers)
        except ConfigError as error:
            raise ConfigError(f"{self._where}: {error.field}", error.problem, error.remedy) from error

    def _numbers(self, name: str, place: str, given: dict[str, Number]) -> dict[str, float]:
        return {key: self._number(f"{name}.{key}", f"{place}.{key}", number) for key, number in given.items()}

    def _number(self, key: str, place: str, number: Number) -> float:
        where = f"{self._where}: {place}"
        if not isinstance(number, FigureTable):
            if self._published and number != _DEFAULTS.get(key.rpartition(".")[2]):
                raise ConfigError(
                    where, "has no source", f'write {{ value = {number:g}, source = "..." }}: the profile is published'
                )
            return _finite(where, number)
        low, high = number.low, number.high
        if (low is None) != (high is None):
            raise ConfigError(where, "has half an interval", "give both low and high, or none of them")
        if low is not None and high is not None and not low <= number.value <= high:
            problem = f"{number.value:g} is not in its interval, {low:g} to {high:g}"
            raise ConfigError(where, problem, "give low <= value <= high")
        if low is None and not number.source:
            raise ConfigError(where, "has neither an interval nor a source", 'add source = "..."')
        if self._published and low is not None:
            raise ConfigError(
                where, "has an interval, but the profile is published", 'leave it out, or kind = "measured"'
            )
        self.figures[key] = Figure(value=number.value, low=low, high=high, source=number.source or "measured")
        return _finite(where, number.value)


def _finite(where: str, value: float) -> float:
    if not math.isfinite(value):
        raise ConfigError(where, f"is {value}", "give a finite number")
    return float(value)


def _check_version(raw: dict[str, Any], where: str) -> None:
    version = raw.get("janus-profile")
    if version is None:
        raise ConfigError(f"{where}: janus-profile", "is missing", f"begin the file with janus-profile = {VERSION}")
    if version != VERSION:
        remedy = f"this release reads version {VERSION}: measure anew with janus profile, or use a newer release"
        raise ConfigError(f"{where}: janus-profile", f"is {version!r}", remedy)


def _convert(raw: dict[str, Any], kind: type[T], where: str, place: str = "") -> T:
    """Return ``raw`` as ``kind``; ``place`` is the table that it is, for errors."""
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        raise _named(error, kind, where, place) from error


def _named(error: msgspec.ValidationError, kind: type[msgspec.Struct], where: str, place: str) -> ConfigError:
    match = _WHERE.match(str(error))
    assert match is not None  # both groups may be empty
    key, problem = match["key"] or "", match["problem"]
    unknown = _UNKNOWN.match(problem)
    path = ".".join(filter(None, (place, key, unknown[1] if unknown else "")))
    if unknown is None:
        return ConfigError(f"{where}: {path}" if path else where, problem[:1].lower() + problem[1:], _HELP)
    # Below the table itself there are links and the host, in the whole file, and figures.
    tables: dict[str, type[msgspec.Struct]] = {
        **dict.fromkeys(("intra", "inter", "peers"), LinkTable),
        "host": HostTable,
    }
    table = kind if not key else tables.get(key, FigureTable)
    names = [field.encode_name for field in msgspec.structs.fields(table)]
    near = difflib.get_close_matches(unknown[1], names, n=1)
    remedy = f"did you mean {near[0]}?" if near else f"keys here are {', '.join(names)}"
    return ConfigError(f"{where}: {path}", "is no key of a profile", remedy)
