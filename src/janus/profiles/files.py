"""Reads profile files; what is wrong in one is told by file and key, with what to do about it."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import tomllib
from pathlib import Path
from typing import Any

import msgspec

from janus.core.exchange_cost import LinkCost
from janus.core.planning.hardware import Device, Figure, HardwareProfile
from janus.errors import ConfigError
from janus.profiles.schema import VERSION, DeviceTable, FigureTable, LinkTable, Number, ProfileTable

_SHIPPED = Path(__file__).with_name("shipped")
_WHERE = re.compile(r"^(?P<problem>.*?)(?: - at `\$\.?(?P<key>.*)`)?$", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`")
_HELP = "docs/planning.md has the format"
#: What a key is when it is not given; that needs no source.
_DEFAULTS = {field.name: field.default for field in dataclasses.fields(Device)}


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
    try:
        table = msgspec.convert(raw, ProfileTable)
    except msgspec.ValidationError as error:
        raise _named(error, where) from error
    reader = _Reader(where, published=table.kind == "published")
    try:
        return HardwareProfile(
            name=table.name,
            kind=table.kind,
            about=table.about,
            devices={name: reader.device(name, device) for name, device in table.device.items()},
            intra=reader.link("intra", table.intra),
            inter=reader.link("inter", table.inter),
            peers=reader.link("peers", table.peers) if table.peers is not None else None,
            devices_per_node=table.devices_per_node,
            links_per_node=table.links_per_node,
            figures=reader.figures,
            measured=table.measured,
        )
    except ConfigError as error:
        if error.field.startswith(where):
            raise
        raise ConfigError(f"{where}: {error.field}", error.problem, error.remedy) from error


class _Reader:
    """Turns tables into what the planner reckons with, and keeps where each number comes from."""

    def __init__(self, where: str, *, published: bool) -> None:
        self._where = where
        self._published = published
        self.figures: dict[str, Figure] = {}

    def device(self, name: str, table: DeviceTable) -> Device:
        """Return the device of ``[device.name]``."""
        given = msgspec.structs.asdict(table)
        cores = given.pop("shared_cores")
        return Device(name=name, shared_cores=cores, **self._numbers(name, f"device.{name}", given))

    def link(self, name: str, table: LinkTable) -> LinkCost:
        """Return the costs of ``[name]``."""
        costs = self._numbers(name, name, msgspec.structs.asdict(table))
        for key, value in costs.items():
            if value < 0:
                raise ConfigError(f"{self._where}: {name}.{key}", f"is {value}", "give 0 or more seconds")
        return LinkCost(**costs)

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
        if (low is None) != (high is None) or (low is not None and high is not None and low > high):
            raise ConfigError(where, f"the interval is {low} to {high}", "give both low and high, or none of them")
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


def _named(error: msgspec.ValidationError, where: str) -> ConfigError:
    match = _WHERE.match(str(error))
    assert match is not None  # both groups may be empty
    key, problem = match["key"] or "", match["problem"]
    unknown = _UNKNOWN.match(problem)
    if unknown is None:
        return ConfigError(f"{where}: {key}" if key else where, problem[:1].lower() + problem[1:], _HELP)
    tables: dict[str, type[msgspec.Struct]] = {"": ProfileTable, "device": DeviceTable}
    first, last = key.partition(".")[0], key.rpartition(".")[2]
    deeper = FigureTable if last in {field.name for field in dataclasses.fields(Device)} else LinkTable
    struct = tables.get(first, deeper) if deeper is LinkTable else deeper
    names = [field.encode_name for field in msgspec.structs.fields(struct)]
    near = difflib.get_close_matches(unknown[1], names, n=1)
    remedy = f"did you mean {near[0]}?" if near else f"keys here are {', '.join(names)}"
    return ConfigError(f"{where}: {'.'.join(filter(None, (key, unknown[1])))}", "is no key of a profile", remedy)
