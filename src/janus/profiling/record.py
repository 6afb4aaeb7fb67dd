"""The file of everything that was measured: for people and programs, and for a later run to add to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from janus.errors import ConfigError
from janus.profiling.campaign import Result
from janus.profiling.observations import PARTS, Observation


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """One operating point, and what the profile that it went into predicts for it."""

    observed: Observation
    #: Of ``observed``: its parts added up.
    total_s: float
    #: The parts, ``hidden_s`` and ``total_s``.
    predicted: dict[str, float]
    #: Predicted over measured step time, less 1.
    error: float


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A whole file."""

    #: Command, hardware, commit, date and so on, as in the profile.
    measured: dict[str, str]
    median_error: float
    worst_error: float
    r_squared: float
    #: Bytes per second that each expert instance loaded its replicas at.
    load_rates: list[float]
    observations: list[Seen]


def record_of(result: Result) -> Record:
    """Return what is to be written."""
    profile, seen = result.fit.profile, []
    for observation, error in zip(result.observations, result.fit.errors, strict=True):
        step = observation.predicted(profile)
        predicted = {part: float(getattr(step, part)) for part in (*PARTS, "hidden_s", "total_s")}
        seen.append(Seen(observed=observation, total_s=observation.total_s, predicted=predicted, error=error))
    return Record(
        measured=dict(profile.measured),
        median_error=result.fit.median_error,
        worst_error=result.fit.worst_error,
        r_squared=result.fit.r_squared,
        load_rates=list(result.load_rates),
        observations=seen,
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


def read(path: Path, *, here: Mapping[str, str]) -> Record:
    """Return what an earlier run has written.

    ``here``: what must be the same in both, by its key in ``measured``.

    Raises:
        ConfigError: it cannot be read, is no such file, or was measured elsewhere or otherwise.
    """
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Record)
    except OSError as error:
        raise ConfigError(
            "--add", f"{path}: {error.strerror}", "name a file that --observations has written"
        ) from error
    except msgspec.DecodeError as error:
        raise ConfigError("--add", f"{path}: {error}", "name a file of --observations") from error
    for key, value in here.items():
        if found.measured.get(key) != value:
            problem = f"{path} was measured with {key} {found.measured.get(key)!r}, and this is {value!r}"
            raise ConfigError("--add", problem, "add what was measured alike, or measure anew")
    return found
