"""What a measured profile is shown as, and the observations in a form for other programs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from janus.core.planning.hardware import Figure, HardwareProfile
from janus.profiling.campaign import Result

_MEANING = {
    "memory_bytes": ("memory of a device", "B"),
    "weight_bytes_s": ("weights read", "B/s"),
    "kv_bytes_s": ("KV cache read", "B/s"),
    "flops_s": ("products", "FLOP/s"),
    "attention_layer_s": ("a layer's attention and gate, besides", "s"),
    "expert_layer_s": ("a layer's experts, besides", "s"),
    "step_s": ("a step, besides its layers", "s"),
    "token_s": ("a token of a step, besides", "s"),
    "row_s": ("a row of an expert, besides", "s"),
    "load_bytes_s": ("replicas loaded", "B/s"),
    "cost_per_hour": ("cost of an hour", ""),
    "message_s": ("a message, at each end", "s"),
    "latency_s": ("its way", "s"),
    "byte_s": ("a byte of it", "s"),
}
_PREFIXES = {12: "T", 9: "G", 6: "M", 3: "k", 0: "", -3: "m", -6: "µ", -9: "n", -12: "p"}


def rows(profile: HardwareProfile) -> Iterator[tuple[str, str, str, str]]:
    """Yield key, meaning, value and interval or source of every figure."""
    for key, figure in profile.figures.items():
        meaning, unit = _MEANING[key.rpartition(".")[2]]
        yield key, meaning, quantity(figure.value, unit), _interval(figure, unit)


def _interval(figure: Figure, unit: str) -> str:
    if figure.low is None or figure.high is None:
        return figure.source
    high = quantity(figure.high, unit) if math.isfinite(figure.high) else "any"
    return f"{quantity(figure.low, unit)} to {high}"


def quantity(value: float, unit: str) -> str:
    """``0.000123, "s"`` -> ``123 µs``."""
    if not value:
        return f"0 {unit}".rstrip()
    power = min(12, max(-12, 3 * math.floor(math.log10(abs(value)) / 3)))
    return f"{value / 10**power:.3g} {_PREFIXES[power]}{unit}".rstrip()


def goodness(result: Result) -> str:
    """How well the profile describes what it was fitted to, in a line."""
    fit = result.fit
    return (
        f"{len(result.observations)} operating points; step times predicted within {fit.median_error:.1%} (median) and "
        f"{fit.worst_error:.1%} (worst), R² {fit.r_squared:.4f}"
    )


def as_json(result: Result) -> dict[str, Any]:
    """The observations, each with what the profile predicts for it."""
    profile = result.fit.profile
    seen = []
    for observation, error in zip(result.observations, result.fit.errors, strict=True):
        step = observation.predicted(profile)
        fields = {
            field.name: getattr(observation, field.name)
            for field in dataclasses.fields(observation)
            if field.name not in ("model", "load")
        }
        load = {key: value for key, value in dataclasses.asdict(observation.load).items() if value is not None}
        predicted = {
            part: float(getattr(step, part))
            for part in ("attention_s", "exchange_s", "experts_s", "other_s", "hidden_s", "total_s")
        }
        seen.append(
            {"model": observation.model.name, **load, **fields, "total_s": observation.total_s}
            | {"predicted": predicted, "error": error}
        )
    return {
        **profile.measured,
        "median_error": result.fit.median_error,
        "worst_error": result.fit.worst_error,
        "r_squared": result.fit.r_squared,
        "observations": seen,
    }
