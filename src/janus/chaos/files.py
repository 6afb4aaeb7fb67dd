"""Reads scenarios from TOML files; what is wrong in one is told by its field, with what to do about it."""

from __future__ import annotations

import difflib
import re
import tomllib
from pathlib import Path

import msgspec

from janus.chaos.scenario import ClusterNeeds, Expect, Load, Scenario, Step, check
from janus.errors import ConfigError

SHIPPED = Path(__file__).with_name("scenarios")
_WHERE = re.compile(r"^(?P<problem>.*?)(?: - at `\$\.?(?P<field>.*)`)?$", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`")
_TABLES: dict[str, type[msgspec.Struct]] = {
    "": Scenario,
    "cluster": ClusterNeeds,
    "load": Load,
    "step": Step,
    "expect": Expect,
}
_HELP = "docs/chaos.md lists the fields"


def shipped() -> dict[str, Path]:
    """The scenarios that come with Janus: name -> file."""
    return {path.stem: path for path in sorted(SHIPPED.glob("*.toml"), key=lambda path: path.stem)}


def find(name: str) -> Path:
    """The file of a scenario that is named, or given as a path.

    Raises:
        ConfigError: there is none.
    """
    if name in shipped():
        return shipped()[name]
    if Path(name).is_file():
        return Path(name)
    near = difflib.get_close_matches(name, shipped(), n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise ConfigError("SCENARIO", f"{name!r} is neither a file nor a scenario", f"{hint}see janus chaos list")


def load_scenario(path: Path) -> Scenario:
    """Read and check one.

    Raises:
        ConfigError: the file cannot be read, or says something that makes no sense.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), f"cannot be read ({error})", "give a TOML file") from error
    return parse(text, name=path.stem)


def parse(text: str, *, name: str) -> Scenario:
    """As ``load_scenario``, of a text."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(name, f"is no TOML: {error}", "correct the line that it names") from error
    try:
        scenario = msgspec.convert({**table, "name": name}, Scenario)
    except msgspec.ValidationError as error:
        raise _named(error) from error
    check(scenario)
    return scenario


def _named(error: msgspec.ValidationError) -> ConfigError:
    match = _WHERE.match(str(error))
    assert match is not None  # both groups may be empty
    field, problem = match["field"] or "", match["problem"]
    unknown = _UNKNOWN.match(problem)
    if unknown is None:
        return ConfigError(field or "scenario", _lower(problem), _HELP)
    known = msgspec.structs.fields(_TABLES.get(re.sub(r"\[.*", "", field), Scenario))
    names = [item.encode_name for item in known if item.encode_name != "name"]
    near = difflib.get_close_matches(unknown[1], names, n=1)
    remedy = f"did you mean {near[0]}?" if near else f"fields here are {', '.join(names)}"
    return ConfigError(".".join(filter(None, (field, unknown[1]))), "is no field of a scenario", remedy)


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
