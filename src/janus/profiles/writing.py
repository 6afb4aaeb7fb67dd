"""Writes profile files: the same profile gives the same text, and reading it gives the same profile."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path

from janus.core.exchange_cost import LinkCost
from janus.core.planning.hardware import Device, Figure, HardwareProfile
from janus.core.planning.host import Host
from janus.errors import ConfigError
from janus.profiles.schema import VERSION

_BARE = re.compile(r"[A-Za-z0-9_-]+")


def write_profile(profile: HardwareProfile, path: Path) -> None:
    """Write ``profile`` to ``path``.

    Raises:
        ConfigError: the file cannot be written.
    """
    try:
        path.write_text(to_toml(profile), encoding="utf-8")
    except OSError as error:
        raise ConfigError(str(path), f"{error.strerror}", "name a file that can be written") from error


def to_toml(profile: HardwareProfile) -> str:
    """Return the text of a profile file."""
    lines = [
        f"janus-profile = {VERSION}",
        f"name = {_text(profile.name)}",
        f"kind = {_text(profile.kind)}",
    ]
    if profile.about:
        lines.append(f"about = {_text(profile.about)}")
    lines += [f"devices_per_node = {profile.devices_per_node}", f"links_per_node = {profile.links_per_node}"]
    for name, device in profile.devices.items():
        lines += ["", f"[device.{_key(name)}]", *_fields(device, name, profile)]
    links = {"intra": profile.intra, "inter": profile.inter, "peers": profile.peers}
    for name, link in links.items():
        if link is not None:
            lines += ["", f"[{name}]", *_fields(link, name, profile)]
    if profile.host.cores:
        lines += ["", "[host]", *_fields(profile.host, "host", profile)]
    if profile.measured:
        lines += ["", "[measured]", *(f"{_key(key)} = {_text(value)}" for key, value in profile.measured.items())]
    return "\n".join(lines) + "\n"


def _fields(values: Device | Host | LinkCost, name: str, profile: HardwareProfile) -> Iterator[str]:
    for field in dataclasses.fields(values):
        value = getattr(values, field.name)
        figure = profile.figures.get(f"{name}.{field.name}")
        if field.name == "name" or (figure is None and value == field.default):
            continue
        yield f"{field.name} = {_figure(value, figure)}"


def _figure(value: float, figure: Figure | None) -> str:
    if figure is None:
        return _number(value)
    parts = [f"value = {_number(value)}"]
    if figure.low is not None and figure.high is not None:
        parts += [f"low = {_number(figure.low)}", f"high = {_number(figure.high)}"]
    if figure.source != "measured" or figure.low is None:
        parts.append(f"source = {_text(figure.source)}")
    return "{ " + ", ".join(parts) + " }"


def _number(value: float) -> str:
    short = f"{value:.10g}"
    return short if float(short) == value else repr(value)


def _text(text: str) -> str:
    # A JSON string is a TOML basic string, but for the escape of DEL, which JSON leaves as it is.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _key(key: str) -> str:
    return key if _BARE.fullmatch(key) else _text(key)
