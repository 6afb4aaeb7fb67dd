"""What a measured profile is shown as."""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import fmean

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
    "attention_row_s": ("a row of a layer's attention, besides", "s"),
    "row_s": ("a row of an expert, besides", "s"),
    "exposed": ("share of the shorter of reading and computing that is not hidden", ""),
    "load_bytes_s": ("replicas loaded", "B/s"),
    "cost_per_hour": ("cost of an hour", ""),
    "gateway_request_s": ("a request, at the gateway", "s"),
    "gateway_message_s": ("a step's message, at the gateway", "s"),
    "gateway_token_s": ("a token, at the gateway", "s"),
    "client_request_s": ("a request, at its client", "s"),
    "client_token_s": ("a token, at its client", "s"),
    "cache_bytes": ("cache that all cores share", "B"),
    "cold_layer_s": ("a layer after more weights than that, besides", "s"),
    "message_s": ("a message, at each end", "s"),
    "latency_s": ("its way", "s"),
    "byte_s": ("a byte of it", "s"),
}
#: What system processes use now and then.
_QUIET_CORES = 0.1
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


def warning(result: Result) -> str:
    """What is to be said of the measurement itself; empty where nothing is."""
    others = fmean(seen.others_cores for seen in result.observations)
    if others <= _QUIET_CORES:
        return ""
    return (
        f"others kept {others:.1f} cores busy meanwhile, and what they took could be taken out only in part: "
        "measure again when nothing else runs"
    )


def goodness(result: Result) -> str:
    """How well the profile describes what it was fitted to, in a line."""
    fit = result.fit
    return (
        f"{len(result.observations)} operating points; step times predicted within {fit.median_error:.1%} (median) and "
        f"{fit.worst_error:.1%} (worst), R² {fit.r_squared:.4f}"
    )
