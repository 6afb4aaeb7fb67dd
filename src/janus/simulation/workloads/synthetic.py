"""Synthetic arrivals and lengths, drawn from a seed. Rates are requests per second; means are kept by construction."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from janus.errors import ConfigError
from janus.simulation.workloads.workload import Workload

_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Log-normal prompts and outputs of these means. The defaults are ShareGPT's as the paper has it (section 5.1)."""

    prompt: float = 16.0
    output: float = 256.0
    #: Standard deviation of the logarithm; 0 = all alike.
    spread: float = 0.8

    def __post_init__(self) -> None:
        for name in ("prompt", "output"):
            if getattr(self, name) < 1:
                raise ConfigError(name, f"is {getattr(self, name):g} tokens", "give at least 1")
        if not 0 <= self.spread <= 3:
            raise ConfigError("spread", f"is {self.spread:g}", "give 0 (all alike) to 3")

    def draw(self, count: int, random: np.random.Generator) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return int64[count] prompts and outputs."""
        return self._of(self.prompt, count, random), self._of(self.output, count, random)

    def _of(self, mean: float, count: int, random: np.random.Generator) -> npt.NDArray[np.int64]:
        # E[exp(N(mu, s^2))] = exp(mu + s^2 / 2).
        values = mean * np.exp(self.spread * random.standard_normal(count) - self.spread**2 / 2)
        return np.maximum(1, np.rint(values)).astype(np.int64)


def constant(rate: float, duration_s: float, *, lengths: Lengths, seed: int = 0) -> Workload:
    """Return arrivals at equal distances."""
    _check(rate, duration_s)
    count = max(1, round(rate * duration_s))
    return _workload("constant", np.arange(count) / rate, duration_s, lengths, np.random.default_rng(seed))


def poisson(rate: float, duration_s: float, *, lengths: Lengths, seed: int = 0) -> Workload:
    """Return a Poisson process."""
    return gamma(rate, duration_s, cv=1.0, lengths=lengths, seed=seed, name="poisson")


def gamma(
    rate: float, duration_s: float, *, cv: float, lengths: Lengths, seed: int = 0, name: str = "gamma"
) -> Workload:
    """Return gamma-distributed distances with the coefficient of variation ``cv``: above 1 they come in clumps."""
    _check(rate, duration_s)
    if not cv > 0:
        raise ConfigError("cv", f"is {cv:g}", "give a positive coefficient of variation; 1 is a Poisson process")
    random = np.random.default_rng(seed)
    shape = 1 / cv**2
    expected = rate * duration_s
    gaps: list[_Floats] = []
    total = 0.0
    while total < duration_s:
        gaps.append(random.gamma(shape, 1 / (rate * shape), round(expected + 6 * cv * math.sqrt(expected) + 16)))
        total += float(gaps[-1].sum())
    at_s = np.cumsum(np.concatenate(gaps))
    return _workload(name, at_s[at_s < duration_s], duration_s, lengths, random)


def diurnal(
    rate: float,
    duration_s: float,
    *,
    peak_to_mean: float = 2.0,
    period_s: float = 86_400.0,
    lengths: Lengths,
    seed: int = 0,
) -> Workload:
    """Return a day that repeats: Poisson arrivals of a rate that follows ``exp(k cos)``, lowest at the start.

    ``rate`` is the mean over a period; at its middle the rate is ``peak_to_mean`` times as much.
    """
    _check(rate, duration_s)
    if not peak_to_mean >= 1 or not period_s > 0:
        raise ConfigError("peak", f"is {peak_to_mean:g}", "give at least 1, and a positive period")
    sharpness = _sharpness(peak_to_mean)
    random = np.random.default_rng(seed)
    at_s = _uniform(rate * peak_to_mean, duration_s, random)
    # Thinning (Lewis and Shedler, 1979): what would come at the peak's rate, kept with the share of the moment.
    kept = random.random(len(at_s)) < np.exp(sharpness * (-np.cos(2 * np.pi * at_s / period_s) - 1))
    return _workload("diurnal", at_s[kept], duration_s, lengths, random)


def bursty(
    rate: float,
    duration_s: float,
    *,
    peak_to_mean: float = 7.5,
    burst_s: float = 60.0,
    calm: float = 0.5,
    lengths: Lengths,
    seed: int = 0,
) -> Workload:
    """Return a Poisson process whose rate switches between two (MMPP): bursts of ``peak_to_mean`` times the mean rate.

    The default is the paper's: peaks of about 7.5 times the weekly mean (section 2).

    Args:
        burst_s: mean length of a burst; both states last exponentially long.
        calm: the rate outside bursts, over the mean.
    """
    _check(rate, duration_s)
    if not peak_to_mean > 1 > calm >= 0 or not burst_s > 0:
        raise ConfigError(
            "peak", f"{peak_to_mean:g} with calm {calm:g}", "give peak above 1, calm in 0..1, and a positive burst"
        )
    random = np.random.default_rng(seed)
    share = (1 - calm) / (peak_to_mean - calm)  # of the time spent in bursts, so that the mean is the rate
    calm_s = burst_s * (1 - share) / share
    start, in_burst = 0.0, bool(random.random() < share)
    parts: list[_Floats] = []
    while start < duration_s:
        lasts = float(random.exponential(burst_s if in_burst else calm_s))
        lasts = min(lasts, duration_s - start)
        parts.append(start + _uniform(rate * (peak_to_mean if in_burst else calm), lasts, random))
        start, in_burst = start + lasts, not in_burst
    return _workload("bursty", np.concatenate(parts), duration_s, lengths, random)


def _check(rate: float, duration_s: float) -> None:
    if not rate > 0:
        raise ConfigError("rate", f"is {rate:g} requests per second", "give a positive rate")
    if not duration_s > 0:
        raise ConfigError("duration", f"is {duration_s:g} s", "give a positive duration")


def _uniform(rate: float, duration_s: float, random: np.random.Generator) -> _Floats:
    """A Poisson process: given how many there are, they are spread evenly."""
    return np.sort(random.random(random.poisson(rate * duration_s)) * duration_s)


def _sharpness(peak_to_mean: float) -> float:
    """Return k with ``exp(k) / I0(k) = peak_to_mean``: the mean of ``exp(k cos)`` over a period is I0(k)."""
    low, high = 0.0, 700.0
    for _ in range(100):
        middle = (low + high) / 2
        # In logarithms: exp(700) is no float32, and i0 of it barely a float64.
        low, high = (middle, high) if middle - math.log(np.i0(middle)) < math.log(peak_to_mean) else (low, middle)
    return low


def _workload(name: str, at_s: _Floats, duration_s: float, lengths: Lengths, random: np.random.Generator) -> Workload:
    prompt, output = lengths.draw(len(at_s), random)
    return Workload(name=name, at_s=at_s, prompt=prompt, output=output, duration_s=duration_s)
