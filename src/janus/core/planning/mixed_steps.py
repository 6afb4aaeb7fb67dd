"""Steps of a deployment under traffic: how much prompts add to them, and what that means for TPOT and TTFT.

The formulas are explained in ``steady.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from janus.core.exchange_routes import Mode
from janus.core.planning.elementwise import larger, smaller
from janus.core.planning.hardware import HardwareProfile
from janus.core.planning.layer_times import expert_layer_s
from janus.core.planning.performance import AMax, Deployment, Load, StepTime, step_time
from janus.core.planning.sizes import ModelSizes
from janus.core.planning.traffic import Traffic

#: Elasticity at which the formula for the variance ends: beyond, the queue has no time constant worth the name.
_MOST_ELASTIC = 0.95
#: Share by which the batch is raised to see how T rises.
_NUDGE = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixed:
    """Steps of which some compute prompts."""

    #: A step without, and what prompts add to it in the mean: the instance's own, and the others'.
    alone_s: Any
    own_s: Any
    others_s: Any
    #: A step with a chunk of its own.
    prompt_step_s: Any

    @property
    def mean_s(self) -> Any:
        """The mean step."""
        return self.alone_s + self.own_s + self.others_s


@dataclass(frozen=True, slots=True)
class Steps:
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
        return self.mixed(batch, step_s).mean_s

    def mixed(self, batch: Any, step_s: Any) -> Mixed:
        """Return steps with and without prompts, given how often these arrive in a step of ``step_s``."""
        step = self.alone_s(batch)
        alone = step.total_s
        if not self.traffic.prompt_tokens or not self.traffic.requests_s:
            return Mixed(alone_s=alone, own_s=0.0, others_s=0.0, prompt_step_s=alone)
        n, chunk = self.deployment.attention, self._chunk(batch)
        chunks_s = self.traffic.requests_s * self.traffic.prompt_tokens / chunk
        # Chunks per step, of its own and of the others'. Where they are more than one, they come together.
        own, others = chunks_s * step_s / n, chunks_s * step_s * (1 - 1 / n)
        mine = smaller(chunk * larger(1.0, own), self._room(batch))
        with_own = larger(alone, self._step(self._load(batch, mine * n), self._load(batch, mine)).total_s)
        theirs = smaller(1.0, others) * self._more_of_others_s(batch, chunk * larger(1.0, others), step)
        return Mixed(
            alone_s=alone,
            own_s=smaller(1.0, own) * (with_own - alone),
            others_s=theirs,
            prompt_step_s=with_own + theirs,
        )

    def prefill_use(self, batch: Any, step_s: Any) -> Any:
        """Return the prompt tokens that an instance is given per step, over those that it has room for."""
        tokens = self.traffic.requests_s * self.traffic.prompt_tokens * step_s / self.deployment.attention
        return tokens / self._room(batch)

    def first_token_s(self, batch: Any, mixed: Mixed, use: Any) -> Any:
        """Return the mean time from arrival to the first token.

        What is left of the running step, if there is one; prompts before it, which keep their instance for a share
        ``use`` of the time and take turns of one length (M/D/1: Pollaczek and Khinchine); its own steps, of which the
        last may compute less than a chunk.
        """
        chunks = larger(1.0, self.traffic.prompt_tokens / self._chunk(batch))
        last = chunks % 1.0 + (chunks % 1.0 == 0)
        turn = (chunks - last) * mixed.prompt_step_s + mixed.mean_s + last * (mixed.prompt_step_s - mixed.mean_s)
        use = smaller(use, 1 - 1e-9)
        # Streams on an instance are as Poisson as those of all (see ``steady.py``).
        busy = 1 - np.exp(-(batch - 1) / self.deployment.attention)
        return busy * mixed.mean_s / 2 + turn * (1 + use / (2 * (1 - use)))

    def tail(self, batch: Any, mixed: Mixed, percentile: float) -> tuple[Any, Any]:
        """Return TPOT over requests, and the batch, at ``percentile``."""
        z, mean = NormalDist().inv_cdf(percentile / 100), mixed.mean_s
        there = batch - 1
        rise = (self.mean_s(batch * (1 + _NUDGE), mean) - self.mean_s(batch, mean)) / _NUDGE
        elastic = smaller(_MOST_ELASTIC, larger(0.0, rise / mean * there / batch))
        peaked = (1 + self.traffic.arrival_cv**2) / 2
        # The last term is that of Cornish and Fisher for Poisson's skewness.
        more = z * (there * peaked / (1 - elastic)) ** 0.5 + (z * z - 1) / 6
        batch_tail = batch + larger(0.0, more)
        by_batch = larger(0.0, self.mean_s(batch_tail, mean) - mean)
        return mean + (by_batch**2 + (z * self._by_prompts_s(mixed)) ** 2) ** 0.5, batch_tail

    def _by_prompts_s(self, mixed: Mixed) -> Any:
        """Return the standard deviation of TPOT over requests that is due to which prompts come while they decode.

        Whole prompts arrive at random, r / n_a per second to the own instance, and each adds seconds S; in the longer
        time that a stream then takes, further ones do. That is a busy period: over W seconds its variance is
        W r E[S^2] / (1 - rho)^2, rho being the share of the time that prompts take (Cohen: The single server queue).
        """
        traffic, n = self.traffic, self.deployment.attention
        if not traffic.prompt_tokens or not traffic.requests_s:
            return 0.0 * mixed.mean_s
        others = larger(1 - 1 / n, 1e-9)
        squares = (mixed.own_s**2 * n + mixed.others_s**2 / others) / traffic.requests_s
        free = mixed.alone_s / mixed.mean_s
        return (squares / (mixed.mean_s * traffic.output_tokens)) ** 0.5 / free

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

    def _more_of_others_s(self, batch: Any, prefill: Any, step: StepTime) -> Any:
        """How much longer ``step`` takes when another instance computes ``prefill`` prompt tokens meanwhile.

        It waits for the experts that all share, or, on one host, for the cores.
        """
        if self.profile.host.cores and not self.deployment.colocated:
            return self._step(self._load(batch, 0.0), self._load(batch, prefill)).total_s - step.total_s
        parts = self.deployment.micro_batches
        load = Load(batch=batch / parts, context=0.0, prefill=prefill / parts)
        a_max = self.a_max(self.deployment.experts, larger(1.0, load.rows))
        experts_s = (
            parts * self.model.moe_layers * expert_layer_s(self.model, self.profile, self.deployment, load, a_max)
        )
        return experts_s - step.experts_s
