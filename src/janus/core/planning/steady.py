"""The steady state that an arrival rate leads to: streams in service, TPOT as clients see it, TTFT.

Little's law gives the batch (equation 2 of arXiv 2512.13525): with D output tokens per second, B = D T(B), and at least
1. What goes beyond the paper:

oneself     A stream sees itself beside the D T that are there in the mean (arrival theorem: Lavenberg and Reiser, J.
            Appl. Prob. 17, 1980), so it decodes with B = 1 + D T(B). That matters for a handful of streams.
prompts     A chunk of a prompt lengthens the step that computes it, on its own attention instance (attention, exchange
            and experts) and on the others (the experts that all share). At a rate of v chunks per second a share
            q = v T / n_a of an instance's steps has one of its own, so
            T(B) = T_0(B) + q (T_own - T_0) + v T (1 - 1 / n_a) (T_others - T_0).
percentiles Streams are served in turn, each at the rate 1 / T(n) while n are there: a symmetric queue (Kelly:
            Reversibility and stochastic networks, 1979, chapter 3), so the number in service is distributed as
            p(n) = p(0) prod_{j <= n} D T(j) / j, whatever the lengths of the answers are. Where T is constant that is
            Poisson's distribution; where T rises with n by the elasticity e = n T'(n) / T(n), its variance is
            D T / (1 - e). Arrivals with a coefficient of variation c multiply it by (1 + c^2) / 2 (heavy traffic limit
            of GI/G/infinity with exponential times). A request sees about one batch all along, as it lives as long as
            the others; which prompts come meanwhile is chance, and adds a variance of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from janus.core.exchange_routes import MODES, Mode
from janus.core.planning.elementwise import choose, larger, smaller
from janus.core.planning.hardware import HardwareProfile
from janus.core.planning.little import settled
from janus.core.planning.mixed_steps import Steps
from janus.core.planning.performance import AMax, Deployment, StepTime
from janus.core.planning.sizes import ModelSizes
from janus.core.planning.traffic import Traffic
from janus.errors import ConfigError

__all__ = ["SteadyState", "Traffic", "steady_state"]

_MOST_STREAMS = 1e7


@dataclass(frozen=True, slots=True, kw_only=True)
class SteadyState:
    """Where a deployment settles. Elementwise where the deployment's counts are arrays.

    Infinite times: it does not settle, more arrives than it can serve with the streams that it has room for.
    """

    #: Streams over all attention instances that one of them decodes with, itself included, B; and at the percentile.
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

    B solves B = 1 + D T(B) in [1, most_streams] (``little.py``). Where even most_streams < D T(most_streams), it does
    not settle. Elementwise: the deployment's counts, and ``most_streams``, may be arrays.

    Args:
        most_streams: Bmax, that all attention instances have room for.
        percentile: of TPOT over requests, and of the batch over time; at least 50 and below 100.
        token_budget: tokens that one step of an attention instance computes at most.
        modes: ways to exchange that the system has.
    """
    if not 50 <= percentile < 100:
        raise ConfigError("percentile", f"is {percentile:g}", "give at least 50 and less than 100")
    steps = Steps(model, profile, deployment, traffic, a_max, token_budget, modes)
    rate, most = traffic.tokens_s, smaller(larger(1.0, most_streams), _MOST_STREAMS)
    least = 1.0 + 0.0 * most

    def step_s(batch: Any) -> Any:
        return steps.mean_s(batch, (batch - 1) / rate)

    if rate:
        batch, settles = settled(rate, step_s, least=least, most=most, oneself=1.0)
        settles = settles & (most_streams >= 1)
        usual = (batch - 1) / rate
    else:
        batch, settles, usual = least, most_streams >= least, 0.0
    step = steps.alone_s(batch)
    mixed = steps.mixed(batch, usual)
    mean = mixed.mean_s
    use = steps.prefill_use(batch, mean)
    tail, batch_tail = steps.tail(batch, mixed, percentile)
    infinite = 0.0 * mean + math.inf
    return SteadyState(
        batch=batch,
        batch_tail=batch_tail,
        tpot_s=choose(settles, mean, infinite),
        tpot_tail_s=choose(settles, tail, infinite),
        ttft_s=choose(settles & (use < 1), steps.first_token_s(batch, mixed, use), infinite),
        prompt_step_s=mixed.prompt_step_s,
        prefill_use=use,
        step=step,
    )
