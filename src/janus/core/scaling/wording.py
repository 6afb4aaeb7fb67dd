"""Decisions in words, with the figures that they rest on."""

from __future__ import annotations

import math

from janus.core.scaling.contract import Observation, Prediction, ScalingConfig


def seconds(value: float) -> str:
    """``139 ms``, ``2.4 s``."""
    return f"{value * 1000:.3g} ms" if value < 1 else f"{value:.3g} s"


def load(seen: Observation) -> str:
    """``at 4.1 requests/s with 37 streams``."""
    return f"at {seen.arrivals_s:.3g} requests/s with {seen.running:.3g} streams"


def expected(prediction: Prediction | None, config: ScalingConfig) -> str:
    """What is expected of numbers of instances; empty when nothing is."""
    if prediction is None or prediction.tpot_mean_s == 0:
        return ""
    if math.isinf(prediction.tpot_tail_s):
        return f"{prediction.counts} could not keep up"
    return f"{prediction.counts} should give {config.tail} {seconds(prediction.tpot_tail_s)}"


def slower_than(what: str, tail_s: float, slo_s: float, seen: Observation, config: ScalingConfig) -> str:
    """A breach of an SLO."""
    return f"{config.tail} {what} {seconds(tail_s)} exceeds the SLO of {seconds(slo_s)} {load(seen)}"


def sentence(*parts: str) -> str:
    """The parts that are not empty, one after the other."""
    return "; ".join(part for part in parts if part)
