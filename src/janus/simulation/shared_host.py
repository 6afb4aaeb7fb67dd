"""Who wants the cores of the one host that a cluster shares: every step that is computed, and requests that are read.

Tokens are paid for with their step, as ``core/planning/host.py`` has it. A request's own seconds, of the gateway and of
its client, are work in the way of every step that begins before they are over; they are spent at one core.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeAlias

from janus.core.planning.host import shared_s
from janus.core.planning.performance import AMax, Deployment, Load, StepTime, alone_on_host
from janus.simulation.config import ClusterConfig

#: Remembered steps at most.
_MOST = 100_000
#: Seconds of a step alone, of the cores that it takes itself, and of gateway and clients; of the whole host, but the
#: first.
_Wanted: TypeAlias = tuple[float, float, float]


class SharedHost:
    """Step times on one host."""

    def __init__(self, config: ClusterConfig, a_max: AMax) -> None:
        self._config = config
        self._a_max = a_max
        #: What the steps that are computed now want of the whole host, together.
        self._wanted_s = 0.0
        #: Core-seconds of requests that were still to be spent at ``_since``.
        self._backlog_s = 0.0
        self._since = 0.0
        self._alike: dict[tuple[int, int, int], tuple[_Wanted, _Wanted]] = {}

    def begin(self, deployment: Deployment, load: Load) -> float:
        """A step of ``load`` begins; returns what it wants, for ``end``."""
        _, cores, beside = self._wanted(deployment, load)
        self._wanted_s += cores + beside
        return cores + beside

    def end(self, wanted_s: float, *, last: bool) -> None:
        """It is over; ``last``: nothing else is computed."""
        self._wanted_s = 0.0 if last else self._wanted_s - wanted_s

    def arrived(self, now: float) -> None:
        """A client sends a request at ``now``."""
        self._backlog_s = self.backlog_s(now) + self._config.profile.host.request_s
        self._since = now

    def backlog_s(self, now: float) -> float:
        """Return the core-seconds of requests that are still to be spent."""
        return max(0.0, self._backlog_s - (now - self._since))

    def step_s(self, deployment: Deployment, load: Load, *, backlog_s: float = 0.0) -> float:
        """Return the seconds of a step that has begun; ``load`` is the own one's, of one instance."""
        alone, cores, beside = self._wanted(deployment, load)
        others = max(0.0, self._wanted_s - cores - beside)
        of_requests = min(backlog_s, alone) / self._config.profile.host.cores
        seconds: float = shared_s(alone, cores=cores, beside=beside + of_requests, others=others)
        return seconds

    def split(self, deployment: Deployment, load: Load) -> StepTime:
        """Return where the seconds of such a step go."""
        step, _, _ = self._alone(deployment, load)
        return replace(step, waiting_s=self.step_s(deployment, load) - step.total_s)

    def _wanted(self, deployment: Deployment, load: Load) -> _Wanted:
        """As ``_alone``; steps that only decode are remembered, as they are linear in their context."""
        if load.prefill or deployment.micro_batches > 1:
            step, cores, beside = self._alone(deployment, load)
            return step.total_s, cores, beside
        key = (int(load.batch), deployment.attention, deployment.experts)
        found = self._alike.get(key)
        if found is None:
            if len(self._alike) >= _MOST:
                self._alike.clear()
            without, one = (self._alone(deployment, replace(load, context=context)) for context in (0.0, 1.0))
            at = (without[0].total_s, *without[1:])
            found = self._alike[key] = at, (one[0].total_s - at[0], one[1] - at[1], one[2] - at[2])
        (alone, cores, beside), (more, more_cores, more_beside) = found
        context = load.context
        return alone + more * context, cores + more_cores * context, beside + more_beside * context

    def _alone(self, deployment: Deployment, load: Load) -> tuple[StepTime, float, float]:
        # As if all were like this one.
        config, n = self._config, deployment.attention
        alike = replace(load, batch=load.batch * n, prefill=load.prefill * n)
        return alone_on_host(config.model, config.profile, deployment, alike, a_max=self._a_max, modes=config.modes)
