"""One place per option: its type, default, unit, range and help live in the dataclass field that holds it.

Help texts, command line, environment names, TOML keys and range checks are all derived from that field, so nothing is
written twice and nothing can disagree.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import math
import re
import shlex
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from janus.errors import ConfigError

_METADATA_KEY = "janus"
#: Suffixes that carry the unit in Python and are dropped for users, who read the unit in the help.
_UNIT_SUFFIXES = ("_s", "_bytes")
_SIZE_SUFFIXES = {"": 1, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_DURATION_SUFFIXES = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(?P<number>[-+]?(\d+\.?\d*|\.\d+))\s*(?P<unit>us|ms|s|min|m|h)", re.IGNORECASE)
_TRUE, _FALSE = frozenset({"1", "true", "yes", "on"}), frozenset({"0", "false", "no", "off"})


@dataclass(frozen=True, slots=True, kw_only=True)
class OptionInfo:
    """What a user is told about an option, and the range it is held to."""

    help: str
    unit: str = ""
    minimum: float | None = None
    maximum: float | None = None
    #: Never on a command line, where other users of the machine could read it: environment or a file only.
    secret: bool = False
    #: How the default reads, where the value itself says too little ("0").
    default_text: str = ""
    panel: str = "Options"
    #: Given by its place on the command line, not by a flag; any number of them where the type is a tuple.
    positional: bool = False


def option(
    default: Any = dataclasses.MISSING,
    *,
    help: str,
    unit: str = "",
    minimum: float | None = None,
    maximum: float | None = None,
    secret: bool = False,
    default_text: str = "",
    panel: str = "Options",
    positional: bool = False,
    factory: Any = dataclasses.MISSING,
) -> Any:
    """Return a dataclass field for one option. Without ``default`` and ``factory`` the option is required."""
    info = OptionInfo(
        help=help,
        unit=unit,
        minimum=minimum,
        maximum=maximum,
        secret=secret,
        default_text=default_text,
        panel=panel,
        positional=positional,
    )
    metadata = {_METADATA_KEY: info}
    if factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=factory, repr=not secret, metadata=metadata)
    return dataclasses.field(default=default, repr=not secret, metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class OptionField:
    """One option of an options class, with its type resolved. ``owner`` is the dataclass that declares it."""

    owner: type
    name: str
    annotation: Any
    info: OptionInfo
    default: Any
    required: bool

    @property
    def key(self) -> str:
        """The name in TOML: ``drain_timeout`` for the field ``drain_timeout_s``."""
        for suffix in _UNIT_SUFFIXES:
            if self.name.endswith(suffix):
                return self.name.removesuffix(suffix)
        return self.name

    @property
    def flag(self) -> str:
        """The name on the command line: ``--drain-timeout``; ``--secret-file`` for a secret; ``INSTANCE`` by place."""
        if self.info.positional:
            return self.metavar
        return "--" + self.key.replace("_", "-") + ("-file" if self.info.secret else "")

    @property
    def is_bool(self) -> bool:
        return self.annotation is bool

    @property
    def metavar(self) -> str:
        """The value's shape in the help: ``SECONDS``, ``HOST:PORT``, ``float32|bfloat16``."""
        choices = choices_of(self.annotation)
        if choices:
            return "|".join(choices)
        if self.info.secret or self.annotation is Path:
            return "PATH"
        if self.is_bool:
            return "true|false"
        if self.info.positional:
            return self.name.removesuffix("s").upper()
        if self.info.unit:
            return self.info.unit.upper()
        return {int: "INTEGER", float: "NUMBER"}.get(self.annotation, "TEXT")


def choices_of(annotation: Any) -> tuple[str, ...]:
    """Return the words that a ``Literal`` allows, or nothing for any other type."""
    return typing.get_args(annotation) if typing.get_origin(annotation) is Literal else ()


def option_fields(cls: type) -> Iterator[OptionField]:
    """Yield the options of ``cls`` in order, those of nested options dataclasses in their place."""
    hints = typing.get_type_hints(cls)
    for item in dataclasses.fields(cls):
        annotation = hints[item.name]
        if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
            yield from option_fields(annotation)
            continue
        factory = item.default_factory
        default = item.default if factory is dataclasses.MISSING else factory()
        yield OptionField(
            owner=cls,
            name=item.name,
            annotation=_without_none(annotation),
            info=item.metadata[_METADATA_KEY],
            default=default,
            required=default is dataclasses.MISSING,
        )


def check_ranges(instance: Any) -> None:
    """Raise ConfigError when an option of dataclass ``instance`` has a wrong type or is out of its range."""
    for item in option_fields(type(instance)):
        if item.owner is not type(instance):
            continue
        value = getattr(instance, item.name)
        if value is not None:
            check_value(item, value)


def check_value(item: OptionField, value: Any) -> None:
    """Raise ConfigError when ``value`` is none of the option's choices, not of its type, or out of its range."""
    choices = choices_of(item.annotation)
    if choices and value not in choices:
        raise ConfigError(item.flag, f"{value!r} is not one of {', '.join(choices)}", f"use {choices[0]}")
    if item.annotation in (int, float):
        _check_number(item, value)


def _check_number(item: OptionField, value: Any) -> None:
    allowed = (int,) if item.annotation is int else (int, float)
    if isinstance(value, bool) or not isinstance(value, allowed):
        kind = "a whole number" if item.annotation is int else "a number"
        raise ConfigError(item.flag, f"{value!r} is not {kind}", f"give {kind} of {item.info.unit or 'items'}")
    unit = f" {item.info.unit}" if item.info.unit.endswith("s") else ""
    if isinstance(value, float) and math.isinf(value):
        raise ConfigError(item.flag, f"{value} is out of range", f"use a finite number{unit and ' of' + unit}")
    low, high = item.info.minimum, item.info.maximum
    too_low, too_high = low is not None and not value >= low, high is not None and not value <= high
    if too_low or too_high:
        bound = f"at least {low:g}" if too_low else f"at most {high:g}"
        raise ConfigError(item.flag, f"{value} is out of range", f"use {bound}{unit}")


def parse(item: OptionField, raw: Any) -> Any:
    """Return ``raw`` (text from a command line or the environment, or a TOML value) as the option's type.

    Raises:
        ValueError: it cannot be read as that type; the message says what was expected.
    """
    if item.is_bool:
        return _parse_bool(raw)
    if isinstance(raw, bool):
        raise ValueError(f"{str(raw).lower()} is a boolean; expected {item.metavar}")
    if item.annotation is int:
        return _parse_size(raw) if item.info.unit in ("bytes", "bytes/s") else _parse_int(raw)
    if item.annotation is float and item.info.unit == "seconds":
        return parse_duration(raw)
    if item.annotation is float:
        try:
            return float(raw)
        except (TypeError, ValueError):
            raise ValueError(f"{raw!r} is not a number") from None
    if typing.get_origin(item.annotation) is tuple:
        return _parse_words(raw)
    if not isinstance(raw, str):
        raise ValueError(f"{raw!r} is not text")
    return Path(raw).expanduser() if item.annotation is Path else raw


def did_you_mean(word: str, known: list[str]) -> str:
    """Return the remedy for a name that is none of ``known``."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"


def parse_duration(raw: Any, *, bare: bool = True) -> float:
    """Return ``"150ms"``, ``"2 s"``, ``"5min"``, ``0.15`` in seconds; a number alone is seconds, unless not ``bare``.

    Raises:
        ValueError: it is none of these.
    """
    if not isinstance(raw, bool):
        if bare:
            with contextlib.suppress(TypeError, ValueError):
                return float(raw)
        match = _DURATION.fullmatch(str(raw).strip())
        if match is not None:
            return float(match["number"]) * _DURATION_SUFFIXES[match["unit"].lower()]
    number = "a number of seconds, nor " if bare else ""
    raise ValueError(f"{raw!r} is not {number}a duration such as 150ms, 2s or 5min")


def _parse_bool(raw: Any) -> bool:
    if isinstance(raw, bool):
        return raw
    word = str(raw).lower()
    if word not in _TRUE | _FALSE:
        raise ValueError(f"{raw!r} is not true or false")
    return word in _TRUE


def _parse_words(raw: Any) -> tuple[str, ...]:
    """A list, or text as a shell would take it apart."""
    if isinstance(raw, str):
        return tuple(shlex.split(raw))
    if not isinstance(raw, list | tuple) or not all(isinstance(each, str) for each in raw):
        raise ValueError(f"{raw!r} is not a list of texts")
    return tuple(raw)


def _parse_int(raw: Any) -> int:
    if isinstance(raw, int):
        return raw
    try:
        return int(str(raw))
    except ValueError:
        raise ValueError(f"{raw!r} is not a whole number") from None


def _parse_size(raw: Any) -> int:
    """``"2GiB"``, ``"512 MiB"``, ``4096``: bytes; the suffixes are powers of 1024."""
    text = str(raw).strip().upper()
    number = text.rstrip("KMGIB ")
    suffix = text[len(number) :].strip()
    suffix = "" if suffix == "B" else suffix
    try:
        return int(float(number) * _SIZE_SUFFIXES[suffix])
    except (KeyError, ValueError, OverflowError):
        raise ValueError(f"{raw!r} is not a size such as 512MiB or 2GiB") from None


def _without_none(annotation: Any) -> Any:
    """``X | None`` -> ``X``."""
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        kinds = [kind for kind in typing.get_args(annotation) if kind is not type(None)]
        return kinds[0] if len(kinds) == 1 else annotation
    return annotation
