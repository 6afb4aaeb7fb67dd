"""Fills an options class from the command line, the environment and a TOML file; pure but for reading files.

The first of these that names an option decides: command line, ``JANUS_<SERVICE>_<OPTION>``, the service's section of
the file, the file's ``[common]``, the default. A name that nobody knows is refused wherever it stands, with the nearest
known one.
"""

from __future__ import annotations

import dataclasses
import tomllib
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from janus.config.cluster import UpOptions
from janus.config.fields import OptionField, did_you_mean, option_fields, parse
from janus.config.options import (
    AttentionOptions,
    CommonOptions,
    ControllerOptions,
    ExpertOptions,
    GatewayOptions,
    ProcessOptions,
)
from janus.errors import ConfigError

T = TypeVar("T")
Table = Mapping[str, Any]

#: Section of the TOML file, and word in the environment names -> options.
SERVICES: Mapping[str, type] = {
    cls.SERVICE: cls for cls in (GatewayOptions, AttentionOptions, ExpertOptions, ControllerOptions, UpOptions)
}
_COMMON = "common"
_PASSED_ON = frozenset(item.name for item in option_fields(ProcessOptions))
#: Names that do not belong to one service's options.
SHARED_ENVIRONMENT = frozenset({"JANUS_SECRET", "JANUS_SECRET_FILE", "JANUS_UCX_SPIN_US", "JANUS_CPU_KERNELS"})
#: What benchmarks and tests read reaches the services that they start, and means nothing there.
_FOREIGN_PREFIXES = ("JANUS_BENCH_", "JANUS_TEST_")


def resolve(cls: type[T], *, cli: Table, environ: Mapping[str, str], config: Path | None = None) -> T:
    """Return the options of ``cls``.

    Args:
        cli: field name -> text (or bool), only what the user gave.
        environ: the process environment; every ``JANUS_*`` name in it is checked.
        config: the TOML file of ``--config``, if any.

    Raises:
        ConfigError: a name is unknown, a value unreadable or out of range, a required option missing.
    """
    check_environment(environ)
    tables = load_config(config) if config is not None else {}
    service = str(getattr(cls, "SERVICE", ""))  # without one: command line and defaults only
    hidden: frozenset[str] = getattr(cls, "HIDDEN", frozenset())
    values: dict[tuple[type, str], Any] = {}
    origins: dict[str, str] = {}
    for item in option_fields(cls):
        if item.name in hidden:
            continue
        found = _find(item, service, cli=cli, environ=environ, tables=tables, config=config)
        if found is None:
            if item.required:
                remedy = f"pass {item.flag}" + (f" {item.metavar}" if item.flag.startswith("-") else "")
                remedy += f" or set {env_name(service, item)}" if service else ""
                raise ConfigError(item.flag, "is required", remedy)
            continue
        origins[item.flag], raw = found
        try:
            values[item.owner, item.name] = parse(item, raw)
        except ValueError as error:
            raise ConfigError(origins[item.flag], str(error), f"give {item.metavar}: {item.info.help}") from error
    try:
        return _build(cls, values)
    except ConfigError as error:
        if error.field in origins:
            raise ConfigError(origins[error.field], error.problem, error.remedy) from error
        raise


def is_common(item: OptionField) -> bool:
    """Whether it may stand in ``[common]``: what every service takes, and what ``janus up`` passes on to all."""
    return item.owner is CommonOptions or (item.owner is UpOptions and item.name in _PASSED_ON)


def env_name(service: str, item: OptionField) -> str:
    """The environment variable of an option; a secret's holds the secret itself."""
    if item.info.secret and item.owner is CommonOptions:
        return f"JANUS_{item.key.upper()}"
    return f"JANUS_{service.upper()}_{item.key.upper()}"


def load_config(path: Path) -> dict[str, dict[str, Any]]:
    """Return the sections of TOML file ``path``, every key of which is known.

    Raises:
        ConfigError: the file cannot be read, is no TOML, or has an unknown section or key.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            "--config", f"cannot read {path}: {error.strerror}", "give the path of a TOML file"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError("--config", f"{path} is not TOML: {error}", "correct the file") from error
    sections = [_COMMON, *SERVICES]
    for section, table in document.items():
        if section not in sections:
            raise ConfigError(f"{path.name}: [{section}]", "is not a section", did_you_mean(section, sections))
        if not isinstance(table, dict):
            raise ConfigError(f"{path.name}: {section}", "is not a section", f"write [{section}] and options below it")
        keys = list(_file_keys(SERVICES.get(section, CommonOptions)))
        for key in table:
            if key not in keys:
                raise ConfigError(f"{path.name}: {section}.{key}", "is not an option", did_you_mean(key, keys))
    return document


def check_environment(environ: Mapping[str, str]) -> None:
    """Raise ConfigError for a ``JANUS_*`` variable that no service knows."""
    unknown = sorted(name for name in environ if name.startswith("JANUS_") and not name.startswith(_FOREIGN_PREFIXES))
    if not unknown:
        return
    known = known_environment()
    for name in unknown:
        if name not in known:
            raise ConfigError(name, "is not an option", did_you_mean(name, sorted(known)) + " or unset it")


def known_environment() -> set[str]:
    """Every environment variable that some service of Janus reads."""
    names = set(SHARED_ENVIRONMENT)
    for service, cls in SERVICES.items():
        for item in option_fields(cls):
            name = env_name(service, item)
            names |= {name, f"{name}_FILE"} if item.info.secret else {name}
    return names


def _file_keys(cls: type) -> Iterator[str]:
    for item in option_fields(cls):
        yield f"{item.key}_file" if item.info.secret else item.key


def _find(
    item: OptionField,
    service: str,
    *,
    cli: Table,
    environ: Mapping[str, str],
    tables: Mapping[str, Table],
    config: Path | None,
) -> tuple[str, Any] | None:
    """Return ``(where it was said, value)``, or nothing when nobody said it."""
    value = cli.get(item.name)
    if value is not None and value != []:  # none of an option that may be repeated
        return item.flag, _read_secret(item.flag, value) if item.info.secret else value
    if not service:
        return None
    name = env_name(service, item)
    if environ.get(name):
        return name, environ[name]
    if item.info.secret and environ.get(f"{name}_FILE"):
        return f"{name}_FILE", _read_secret(f"{name}_FILE", environ[f"{name}_FILE"])
    sections = [service, _COMMON] if is_common(item) else [service]
    for section in sections:
        key = f"{item.key}_file" if item.info.secret else item.key
        if config is not None and key in tables.get(section, {}):
            where = f"{config.name}: {section}.{key}"
            said = tables[section][key]
            return where, _read_secret(where, said) if item.info.secret else said
    return None


def _read_secret(where: str, path: Any) -> str:
    try:
        secret = Path(path).expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError, TypeError) as error:
        raise ConfigError(where, f"cannot read the file: {error}", "give a readable text file") from error
    if not secret:
        raise ConfigError(where, f"{path} is empty", "write the secret into it, on one line")
    return secret


def _build(cls: type[T], values: Mapping[tuple[type, str], Any]) -> T:
    """Construct ``cls`` and the options dataclasses nested in it."""
    hints = typing.get_type_hints(cls)
    arguments: dict[str, Any] = {}
    for item in dataclasses.fields(cls):  # type: ignore[arg-type]  # T is an options dataclass
        annotation = hints[item.name]
        if dataclasses.is_dataclass(annotation):
            arguments[item.name] = _build(typing.cast(type[Any], annotation), values)
        elif (cls, item.name) in values:
            arguments[item.name] = values[cls, item.name]
    return cls(**arguments)
