"""The steady state that an arrival rate leads to: streams in service, TPOT as clients see it, TTFT.

Little's law gives the batch (equation 2 of arXiv 2512.13525): with D output tokens per second, B = D T(B). What goes
beyond the paper:

prompts     A chunk of a prompt lengthens the step that computes it, on its own attention instance (attention, exchange
            and experts) and on the others (the experts that all share). At a rate of v chunks per second a share
            q = v T / n_a of an instance's steps has one of its own, so
            T(B) = T_0(B) + q (T_own - T_0) + v T (1 - 1 / n_a) (T_others - T_0).
percentiles Streams are served in turn, each at the rate 1 / T(n) while n are there: a symmetric queue (Kelly:
            Reversibility and stochastic networks, 1979, chapter 3), so the number in service is distributed as
            p(n) = p(0) prod_{j <= n} D T(j) / j, whatever the lengths of the answers are. Where T is constant that is
            Poisson's distribution; where T rises with n by the elasticity e = B T'(B) / T(B), its variance is
            B / (1 - e). Arrivals with a coefficient of variation c multiply it by (1 + c^2) / 2 (heavy traffic limit
            of GI/G/infinity with exponential times). A request sees about one batch all along, as it lives as long as
            the others; prompts hit it at random, so over L steps their share varies by q / L.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

import numpy as np

from janus.core.exchange_routes import MODES, Mode
from janus.core.planning.elementwise import choose, larger, smaller
from janus.core.planning.hardware import HardwareProfile
from janus.core.planning.performance import AMax, Deployment, Load, StepTime, expert_layer_s, step_time
from janus.core.planning.sizes import ModelSizes
from janus.errors import ConfigError

#: Cuts of the bracket in which the batch lies, at most, and the relative error at which they end.
_CUTS = 60
_CLOSE = 1e-5
_MOST_STREAMS = 1e7
#: Elasticity at which the formula for the variance ends: beyond, the queue has no time constant worth the name.
_MOST_ELASTIC = 0.95
#: Share by which the batch is raised to see how T rises.
_NUDGE = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Requests that arrive, in the long run.

    Raises:
        ConfigError: numbers that no traffic has.
    """

    #: Per second.
    requests_s: float
    #: Mean tokens of a prompt, and of an answer.
    prompt_tokens: float
    output_tokens: float
    #: Coefficient of variation of the times between arrivals (1 = Poisson, more = bursts), and of the answers' lengths.
    arrival_cv: float = 1.0
    output_cv: float = 0.0

    def __post_init__(self) -> None:
        for name, least in (("requests_s", 0), ("prompt_tokens", 0), ("output_tokens", 1)):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= least):
                raise ConfigError(name, f"is {value:g}", f"give a finite number, at least {least}")
        for name in ("arrival_cv", "output_cv"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(name, f"is {value:g}", "give 0 or more")

    @property
    def tokens_s(self) -> float:
        """Output tokens per second, D."""
        return self.requests_s * self.output_tokens

    @property
    def context(self) -> float:
        """Mean tokens of context of a stream that decodes: longer answers are seen for longer."""
        return self.prompt_tokens + self.output_tokens * (1 + self.output_cv**2) / 2

    @property
    def longest(self) -> float:
        """Context at the end of a mean answer."""
        return self.prompt_tokens + self.output_tokens

    def times(self, factor: float) -> Traffic:
        """Return the traffic at ``factor`` times the rate."""
        return replace(self, requests_s=self.requests_s * factor)


@dataclass(frozen=True, slots=True, kw_only=True)
class SteadyState:
    """Where a deployment settles. Elementwise where the deployment's counts are arrays.

    Infinite times: it does not settle, more arrives than it can serve with the streams that it has room for.
    """

    #: Streams in service over all attention instances, B; and at the percentile.
    batch: float
    batch_tail: float
    #: TPOT: mean over tokens, and the percentile over requests.
    tpot_s: float
    tpot_tail_s: float
    #: Of a request that need not wait for others to leave: the running step, its own steps, prompts before it.
    ttft_s: float
    #: A step that computes a chunk of a prompt: the longest gap between two tokens of a stream.
    prompt_step_s: float
    #: Prompt tokens of an attention instance per step, over those that it may compute in one: above 1, prompts pile up.
    prefill_use: float
    #: A step without prompts.
    step: StepTime


def steady_state(
    model: ModelSizes,
    profile: HardwareProfile,
    deployment: Deployment,
    traffic: Traffic,
    *,
    a_max: AMax,
    most_streams: float,
    percentile: float = 99.0,
    token_budget: float = 512,
    modes: Sequence[Mode] = MODES,
) -> SteadyState:
    """Return where ``deployment`` settles under ``traffic``.

    B solves f(B) = B - D T(B) = 0 in [1, most_streams]: f(1) >= 0 makes it 1, f(most_streams) < 0 says that it does
    not settle. Elementwise: the deployment's counts, and ``most_streams``, may be arrays.

    Args:
        most_streams: Bmax, that all attention instances have room for.
        percentile: of TPOT over requests, and of the batch over time; at least 50 and below 100.
        token_budget: tokens that one step of an attention instance computes at most.
        modes: ways to exchange that the system has.
    """
    if not 50 <= percentile < 100:
        raise ConfigError("percentile", f"is {percentile:g}", "give at least 50 and less than 100")
    steps = _Steps(model, profile, deployment, traffic, a_max, token_budget, modes)
    rate, most = traffic.tokens_s, smaller(larger(1.0, most_streams), _MOST_STREAMS)
    least = 1.0 + 0.0 * most

    def excess(batch: Any) -> Any:
        return batch - rate * steps.mean_s(batch, batch / rate)

    if rate:
        at_most, at_least = excess(most), excess(least)
        idle, settles = at_least >= 0, (at_most >= 0) & (most_streams >= 1)
        batch = choose(idle, 1.0, _crossing(excess, least, most, at_least, at_most))
        batch = choose(settles, batch, most)
        # Where now and then nobody is there, a step does not last until the next one comes.
        usual = choose(idle, steps.mean_s(batch, steps.alone_s(batch).total_s), batch / rate)
    else:
        batch, settles, usual = least, most_streams >= least, 0.0
    step = steps.alone_s(batch)
    mean, own = steps.mean_and_own_s(batch, usual)
    use = steps.prefill_use(batch, mean)
    tail, batch_tail = steps.tail(batch, mean, own - step.total_s, percentile)
    infinite = 0.0 * mean + math.inf
    return SteadyState(
        batch=batch,
        batch_tail=batch_tail,
        tpot_s=choose(settles, mean, infinite),
        tpot_tail_s=choose(settles, tail, infinite),
        ttft_s=choose(settles & (use < 1), steps.first_token_s(batch, mean, own, use), infinite),
        prompt_step_s=own,
        prefill_use=use,
        step=step,
    )


@dataclass(frozen=True, slots=True)
class _Steps:
    """Steps of one deployment under some traffic."""

    model: ModelSizes
    profile: HardwareProfile
    deployment: Deployment
    traffic: Traffic
    a_max: AMax
    token_budget: float
    modes: Sequence[Mode]

    def alone_s(self, batch: Any) -> StepTime:
        """Return the step of ``batch`` streams and no prompt."""
        return self._step(self._load(batch, 0.0), None)

    def mean_s(self, batch: Any, step_s: Any) -> Any:
        """Return the mean step, given how often prompts arrive in a step of ``step_s``."""
        return self.mean_and_own_s(batch, step_s)[0]

    def mean_and_own_s(self, batch: Any, step_s: Any) -> tuple[Any, Any]:
        """Return the mean step, and one with a chunk of a prompt of the instance's own."""
        step = self.alone_s(batch)
        alone = step.total_s
        if not self.traffic.prompt_tokens or not self.traffic.requests_s:
            return alone, alone
        n, chunk = self.deployment.attention, self._chunk(batch)
        chunks_s = self._chunks_s(batch)
        # Chunks per step, of its own and of the others'. Where they are more than one, they come together.
        own, others = chunks_s * step_s / n, chunks_s * step_s * (1 - 1 / n)
        mine = smaller(chunk * larger(1.0, own), self._room(batch))
        with_own = self._step(self._load(batch, mine * n), self._load(batch, mine)).total_s
        theirs = self._experts_s(batch, chunk * larger(1.0, others)) - step.experts_s
        mean = alone + smaller(1.0, own) * larger(0.0, with_own - alone) + smaller(1.0, others) * theirs
        return mean, larger(alone, with_own)

    def prefill_use(self, batch: Any, step_s: Any) -> Any:
        """Return the prompt tokens that an instance is given per step, over those that it has room for."""
        tokens = self.traffic.requests_s * self.traffic.prompt_tokens * step_s / self.deployment.attention
        return tokens / self._room(batch)

    def first_token_s(self, batch: Any, mean: Any, own: Any, use: Any) -> Any:
        """Return the mean time from arrival to the first token.

        What is left of the running step; prompts before it, which leave their instance free for a share ``use`` of the
        time and take turns of one length (M/D/1: Pollaczek and Khinchine); its own steps.
        """
        chunks = larger(1.0, self.traffic.prompt_tokens / self._chunk(batch))
        use = smaller(use, 1 - 1e-9)
        return mean / 2 + chunks * own * (1 + use / (2 * (1 - use)))

    def tail(self, batch: Any, mean: Any, extra: Any, percentile: float) -> tuple[Any, Any]:
        """Return TPOT and batch at ``percentile``; ``extra``: seconds by which a prompt lengthens a step."""
        z = NormalDist().inv_cdf(percentile / 100)
        rise = (self.mean_s(batch * (1 + _NUDGE), mean) - self.mean_s(batch, mean)) / _NUDGE
        elastic = smaller(_MOST_ELASTIC, larger(0.0, rise / mean))
        peaked = (1 + self.traffic.arrival_cv**2) / 2
        # The last term is that of Cornish and Fisher for Poisson's skewness.
        batch_tail = batch + z * (batch * peaked / (1 - elastic)) ** 0.5 + (z * z - 1) / 6
        batch_tail = larger(batch, batch_tail)
        by_batch = larger(0.0, self.mean_s(batch_tail, mean) - mean)
        chunks = self._chunks_s(batch) * mean / self.deployment.attention
        by_prompts = z * extra * (smaller(1.0, chunks) / self.traffic.output_tokens) ** 0.5
        return mean + (by_batch**2 + by_prompts**2) ** 0.5, batch_tail

    def _chunks_s(self, batch: Any) -> Any:
        return self.traffic.requests_s * self.traffic.prompt_tokens / self._chunk(batch)

    def _room(self, batch: Any) -> Any:
        """Prompt tokens that one step of an instance has room for: streams that decode go first."""
        return larger(1.0, self.token_budget - batch / self.deployment.attention)

    def _chunk(self, batch: Any) -> Any:
        return smaller(max(1.0, self.traffic.prompt_tokens), self._room(batch))

    def _load(self, batch: Any, prefill: Any) -> Load:
        looks_back = self.traffic.prompt_tokens / 2
        return Load(batch=batch, context=self.traffic.context, prefill=prefill, prefill_context=looks_back)

    def _step(self, load: Load, at_experts: Load | None) -> StepTime:
        return step_time(
            self.model,
            self.profile,
            self.deployment,
            load,
            a_max=self.a_max,
            at_experts=at_experts,
            modes=self.modes,
        )

    def _experts_s(self, batch: Any, prefill: Any) -> Any:
        """All MoE layers' experts of a step."""
        parts = self.deployment.micro_batches
        load = Load(batch=batch / parts, context=0.0, prefill=prefill / parts)
        a_max = self.a_max(self.deployment.experts, larger(1.0, load.rows))
        return parts * self.model.moe_layers * expert_layer_s(self.model, self.deployment, load, a_max)


def _crossing(f: Callable[[Any], Any], low: Any, high: Any, at_low: Any, at_high: Any) -> Any:
    """Return where ``f`` rises through 0 between ``low`` and ``high``; anything where it does not.

    Bisection that cuts where the secant does (Illinois: Dowell and Jarratt, BIT 11, 1971): a few cuts are enough.
    """
    never = (at_low >= 0) | (at_high < 0)
    found, side = high, 0.0 * low
    for _ in range(_CUTS):
        span = at_high - at_low
        found = high - at_high * (high - low) / choose(span > 0, span, 1.0)
        found = smaller(larger(found, low), high)
        value = f(found)
        if _all(never | (abs(value) <= _CLOSE * found)):
            break
        below = value < 0
        low, high = choose(below, found, low), choose(below, high, found)
        # An end that stays twice in a row counts for half, or the other would crawl.
        at_low = choose(below, value, choose(side > 0, at_low / 2, at_low))
        at_high = choose(below, choose(side < 0, at_high / 2, at_high), value)
        side = choose(below, -1.0, 1.0)
    return found


def _all(condition: Any) -> bool:
    return bool(condition.all()) if isinstance(condition, np.ndarray) else bool(condition)
