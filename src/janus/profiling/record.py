"""The file of everything that was measured: for people and programs, and for a later run to add to."""

from __future__ import annotations

from pathlib import Path

import msgspec

from janus.errors import ConfigError
from janus.profiling.campaign import Result
from janus.profiling.host_work import HostWork
from janus.profiling.machine import Conditions
from janus.profiling.observations import PARTS, Observation

#: Of ``Conditions``; memory is a little different after each start of a machine.
_ALIKE = ("cpu", "cores", "dtype", "threads")


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """One operating point, and what the profile that it went into predicts for it."""

    observed: Observation
    #: Of ``observed``: its parts added up.
    total_s: float
    #: The parts, ``hidden_s``, ``waiting_s`` and ``total_s``.
    predicted: dict[str, float]
    #: Predicted over measured step time, less 1.
    error: float


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A whole file."""

    conditions: Conditions
    #: Command, hardware, commit, date and so on, as in the profile.
    measured: dict[str, str]
    median_error: float
    worst_error: float
    r_squared: float
    #: Bytes per second that each expert instance loaded its replicas at.
    load_rates: list[float]
    observations: list[Seen]
    host_work: list[HostWork] = []


def record_of(result: Result) -> Record:
    """Return what is to be written."""
    profile, seen = result.fit.profile, []
    for observation, error in zip(result.observations, result.fit.errors, strict=True):
        step = observation.predicted(profile)
        predicted = {part: float(getattr(step, part)) for part in (*PARTS, "hidden_s", "waiting_s", "total_s")}
        seen.append(Seen(observed=observation, total_s=observation.total_s, predicted=predicted, error=error))
    return Record(
        conditions=result.conditions,
        measured=dict(profile.measured),
        median_error=result.fit.median_error,
        worst_error=result.fit.worst_error,
        r_squared=result.fit.r_squared,
        load_rates=list(result.load_rates),
        observations=seen,
        host_work=list(result.host_work),
    )


def write(result: Result, path: Path) -> None:
    """Write ``result`` to ``path``.

    Raises:
        ConfigError: the file cannot be written.
    """
    try:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(record_of(result)), indent=2) + b"\n")
    except OSError as error:
        raise ConfigError("--observations", f"{path}: {error.strerror}", "name a file that can be written") from error


def read(path: Path, *, here: Conditions | None) -> Record:
    """Return what an earlier run has written.

    ``here``: what it must have been measured on; ``None`` = anything.

    Raises:
        ConfigError: it cannot be read, is no such file, or was measured elsewhere or otherwise.
    """
    remedy = "name a file of --observations"
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Record)
    except OSError as error:
        raise ConfigError("--add", f"{path}: {error.strerror}", remedy) from error
    except msgspec.DecodeError as error:
        raise ConfigError("--add", f"{path}: {error}", remedy) from error
    for key in _ALIKE if here is not None else ():
        then, now = getattr(found.conditions, key), getattr(here, key)
        if then != now:
            problem = f"{path} was measured with {key} {then!r}, and this is {now!r}"
            raise ConfigError("--add", problem, "add what was measured alike, or measure anew")
    return found
