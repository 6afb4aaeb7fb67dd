"""Workloads in words, as on a command line: ``poisson:RATE``, ``diurnal:RATE,peak=7.5,output=128``, or a CSV file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from janus.errors import ConfigError
from janus.simulation.workloads.files import read_trace
from janus.simulation.workloads.synthetic import Lengths, bursty, constant, diurnal, gamma, poisson
from janus.simulation.workloads.workload import Workload

_LENGTHS = {"prompt": "prompt", "output": "output", "spread": "spread"}
#: Kind -> what makes it, and its own options by the argument that each sets.
_KINDS: dict[str, tuple[Callable[..., Workload], dict[str, str]]] = {
    "constant": (constant, {}),
    "poisson": (poisson, {}),
    "gamma": (gamma, {"cv": "cv"}),
    "diurnal": (diurnal, {"peak": "peak_to_mean", "period": "period_s"}),
    "bursty": (bursty, {"peak": "peak_to_mean", "burst": "burst_s", "calm": "calm"}),
}
_DEFAULTS = {"gamma": {"cv": 2.0}}


def workload_of(text: str, *, duration_s: float, seed: int = 0) -> Workload:
    """Return the workload that ``text`` names: ``KIND:RATE[,OPTION=VALUE...]``, or the path of a trace.

    A trace is taken from its start for ``duration_s`` seconds, or whole where that is 0 (see ``read_trace``).

    Raises:
        ConfigError: neither; says what is understood.
    """
    kind, colon, rest = text.partition(":")
    if not colon or kind not in _KINDS:
        path = Path(text)
        if not path.exists():
            raise ConfigError(
                "workload",
                f"{text!r} is neither a file nor a kind of workload",
                f"name a CSV file, or one of {', '.join(f'{name}:RATE' for name in _KINDS)}",
            )
        trace = read_trace(path)
        return trace.between(0.0, duration_s) if duration_s else trace
    make, own = _KINDS[kind]
    rate, *options = rest.split(",")
    arguments = dict(_DEFAULTS.get(kind, {}))
    lengths: dict[str, float] = {}
    for option in options:
        name, equals, value = option.strip().partition("=")
        if not equals or name not in own | _LENGTHS:
            known = ", ".join(f"{each}=" for each in (*own, *_LENGTHS))
            raise ConfigError("workload", f"{text!r} has {option!r}", f"{kind} takes {known}")
        (lengths if name in _LENGTHS else arguments)[(own | _LENGTHS)[name]] = _number(text, name, value)
    return make(_number(text, "the rate", rate), duration_s, lengths=Lengths(**lengths), seed=seed, **arguments)


def _number(text: str, name: str, value: str) -> float:
    try:
        return float(value)
    except ValueError as error:
        raise ConfigError("workload", f"{name} of {text!r} is {value!r}", "give a number") from error
