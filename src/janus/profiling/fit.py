"""From observations to a profile: the rates that make the planner's own model agree with them best. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import numpy as np

from janus.core.exchange_cost import LinkCost
from janus.core.planning.hardware import Figure, HardwareProfile
from janus.core.planning.performance import Load
from janus.core.planning.sizes import ModelSizes
from janus.profiling.least_squares import Vector, solve
from janus.profiling.observations import PARTS, Observation


@dataclass(frozen=True, slots=True)
class Parameter:
    """One figure that is fitted. ``rate``: it is a number per second, and its reciprocal is what times depend on."""

    name: str
    #: Where the search begins: a CPU core, in seconds or per second. It ends anywhere up to ``most``.
    start: float
    rate: bool = False
    most: float = math.inf


DEVICE = (
    Parameter("weight_bytes_s", 1e10, rate=True),
    Parameter("kv_bytes_s", 5e9, rate=True),
    Parameter("flops_s", 5e10, rate=True),
    Parameter("attention_layer_s", 1e-4),
    Parameter("expert_layer_s", 3e-5),
    Parameter("step_s", 3e-4),
    Parameter("token_s", 1e-5),
    Parameter("attention_row_s", 1e-6),
    Parameter("row_s", 1e-6),
    Parameter("exposed", 0.3, most=1.0),
)
LINK = (Parameter("message_s", 2e-5), Parameter("latency_s", 2e-5), Parameter("byte_s", 3e-10))
#: Where there is a host whose cache is known.
HOST = (Parameter("cold_layer_s", 1e-4),)
#: Times so much shorter than where their search began are none.
_NOTHING = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A profile, and how well it describes what it was fitted to."""

    profile: HardwareProfile
    #: By observation: predicted over measured step time, less 1.
    errors: tuple[float, ...]
    #: Share of the variance of step times that it explains.
    r_squared: float

    @property
    def median_error(self) -> float:
        """Median of the sizes of the errors."""
        return median(map(abs, self.errors))

    @property
    def worst_error(self) -> float:
        """The largest."""
        return max(map(abs, self.errors))


def fit(observations: Sequence[Observation], template: HardwareProfile) -> Fit:
    """Return ``template`` with every rate of its only device and its links as ``observations`` have it.

    Every part of a step counts, in proportion to the step: what is a small part of it may be further off.

    Raises:
        ConfigError: too few observations, or they do not tell every rate.
    """
    by_model: dict[ModelSizes, list[Observation]] = {}
    for seen in observations:
        by_model.setdefault(seen.model, []).append(seen)
    together = [_Together(group) for group in by_model.values()]
    measured: Vector = np.array(
        [[getattr(seen, part) for part in PARTS] for group in by_model.values() for seen in group]
    )
    totals: Vector = measured.sum(axis=1, keepdims=True)
    wanted = _parameters(template)

    def residuals(values: Vector) -> Vector:
        profile = _with(template, _figures_of(wanted, values))
        predicted: Vector = np.concatenate([group.parts(profile) for group in together])
        return ((predicted - measured) / totals).ravel()

    start = np.array([_seconds(each, each.start) for each in wanted.values()])
    found = solve(residuals, start)
    figures = {
        key: _figure(each, value, low, high)
        for (key, each), value, low, high in zip(wanted.items(), found.values, found.low, found.high, strict=True)
    }
    profile = _with(template, {key: figure.value for key, figure in figures.items()})
    profile = replace(profile, figures={**template.figures, **figures, **_taken_over(figures)})
    predicted = np.array([seen.predicted(profile).total_s for seen in observations])
    actual = np.array([seen.total_s for seen in observations])
    spread = float(((actual - actual.mean()) ** 2).sum())
    unexplained = float(((predicted - actual) ** 2).sum())
    return Fit(
        profile=profile,
        errors=tuple((predicted / actual - 1).tolist()),
        r_squared=1 - unexplained / spread if spread else 1.0,
    )


class _Together:
    """Observations of one model, priced by one call of ``step_time``, which takes arrays."""

    def __init__(self, observations: Sequence[Observation]) -> None:
        first, loads = observations[0], [seen.load for seen in observations]
        looks_back = [load.context if load.prefill_context is None else load.prefill_context for load in loads]
        # The counts are declared as numbers, and taken as arrays.
        arrays: Any = {
            "attention": np.array([seen.attention for seen in observations]),
            "experts": np.array([seen.experts for seen in observations]),
            "a_max": np.array([seen.a_max for seen in observations]),
            "load": Load(
                batch=_array([load.batch for load in loads]),
                context=_array([load.context for load in loads]),
                prefill=_array([load.prefill for load in loads]),
                prefill_context=_array(looks_back),
            ),
        }
        self._all = replace(first, **arrays)

    def parts(self, profile: HardwareProfile) -> Vector:
        """[observations, parts] as they are timed: what the exchange hides is not seen as attention."""
        step = self._all.predicted(profile)
        parts: tuple[Any, ...] = (step.attention_s - step.hidden_s, step.exchange_s, step.experts_s, step.other_s)
        # What is waited for the cores of a host is waited in every part.
        longer = step.total_s / (step.total_s - step.waiting_s)
        parts = tuple(part * longer for part in parts)
        stacked: Vector = np.array(np.broadcast_arrays(*parts), dtype=np.float64).T
        return stacked


def _array(numbers: Sequence[float]) -> Any:
    return np.array(numbers, dtype=np.float64)


def _seconds(parameter: Parameter, value: float) -> float:
    return 1 / value if parameter.rate else value


def _parameters(template: HardwareProfile) -> dict[str, Parameter]:
    """What is fitted, by its key among a profile's figures."""
    device, host = template.device().name, HOST if template.host.cache_bytes else ()
    where = ((device, DEVICE), ("intra", LINK), ("host", host))
    return {f"{table}.{each.name}": each for table, parameters in where for each in parameters}


def _figures_of(wanted: Mapping[str, Parameter], seconds: Vector) -> dict[str, float]:
    """The search knows no upper end; beyond ``most`` nothing changes any more."""
    return {
        key: min(each.most, float(_seconds(each, value)))
        for (key, each), value in zip(wanted.items(), seconds, strict=True)
    }


def _with(template: HardwareProfile, figures: Mapping[str, float]) -> HardwareProfile:
    """The template with ``figures``, by their keys."""
    device = template.device()
    given: dict[str, dict[str, Any]] = {device.name: {}, "intra": {}, "host": {}}
    for key, value in figures.items():
        table, _, name = key.rpartition(".")
        given[table][name] = value
    link = LinkCost(**given["intra"])
    host = replace(template.host, **given["host"])
    return replace(
        template, devices={device.name: replace(device, **given[device.name])}, intra=link, inter=link, host=host
    )


def _figure(parameter: Parameter, value: float, low: float, high: float) -> Figure:
    if not parameter.rate:
        value, low = (min(each, parameter.most) for each in (value, low))
        value = value if value > _NOTHING * parameter.start else 0.0
        return Figure(value=_short(value), low=_short(min(low, value)), high=_short(min(high, parameter.most)))
    # Without an upper end where the time may be nothing.
    upper = 1 / low if low > 0 else math.inf
    return Figure(value=_short(1 / value), low=_short(1 / high), high=_short(upper))


def _short(value: float) -> float:
    """Six digits are more than any of them is worth."""
    return float(f"{value:.6g}")


def _taken_over(figures: Mapping[str, Figure]) -> dict[str, Figure]:
    """Between nodes: one machine was measured, and says nothing else."""
    source = "taken over from intra: one machine was measured"
    return {
        key.replace("intra.", "inter."): Figure(value=figure.value, source=source)
        for key, figure in figures.items()
        if key.startswith("intra.")
    }
