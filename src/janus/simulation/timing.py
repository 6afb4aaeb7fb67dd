"""How long the steps of one attention instance take, beside those of all others that use the same experts.

What is modelled: expert instances compute everything that waits for a layer together (``core/expert_queue.py``), and
attention instances that were answered together dispatch the next layer together, so that they stay in step. Hence a
step takes its instance's own attention and exchange, and the experts' time for the rows of all steps that are computed
at the time when it begins. That is equation 1 for instances that are not alike (``step_time(at_experts=...)``).
"""

from __future__ import annotations

from janus.core.planning.performance import Load, StepTime, step_time
from janus.simulation.config import ClusterConfig


class StepClock:
    """Step times of a cluster whose numbers and total rows change."""

    def __init__(self, config: ClusterConfig) -> None:
        self._config = config
        #: Expert instances that serve, and attention instances that compute a step now.
        self.experts = config.experts
        self.active = 0
        #: Rows of all steps that are computed now: streams that decode, and prompt tokens.
        self.decode_rows = 0
        self.prefill_rows = 0
        #: Streams of a typical step, and how long it took when ``has_shifted`` last said yes. Without context, as that
        #: is nothing that others change.
        self._typical = 1.0
        self._took_s = 0.0
        self._a_max: dict[tuple[int, float], float] = {}

    def begin(self, *, decode: int, prefill: int) -> None:
        """A step, or a run of alike ones, of so many rows begins."""
        self.active += 1
        self.decode_rows += decode
        self.prefill_rows += prefill

    def end(self, *, decode: int, prefill: int) -> None:
        """It is over."""
        self.active -= 1
        self.decode_rows -= decode
        self.prefill_rows -= prefill

    def has_shifted(self) -> bool:
        """Return whether, through what others compute, steps take notably longer or shorter than when it was last."""
        if not self.active:
            return False
        took_s = self.step_s(decode=self._typical, context=1.0)
        if abs(took_s - self._took_s) <= self._config.tolerance * self._took_s:
            return False
        self._typical = max(1.0, self.decode_rows / self.active)
        self._took_s = self.step_s(decode=self._typical, context=1.0)
        return True

    def split(self, *, decode: float, context: float) -> StepTime:
        """Return where the seconds of such a step go."""
        return self._step(decode, context, 0, None)

    def step_s(self, *, decode: float, context: float, prefill: int = 0, prefill_context: float | None = None) -> float:
        """Return the seconds of a step of ``decode`` streams of ``context`` tokens each and ``prefill`` prompt tokens,
        which look back on ``prefill_context`` tokens.

        The step itself has begun: it is part of what the experts compute.
        """
        return self._step(decode, context, prefill, prefill_context).total_s

    def _step(self, decode: float, context: float, prefill: int, prefill_context: float | None) -> StepTime:
        config, active = self._config, max(1, self.active)
        own = Load(batch=decode * active, context=context, prefill=prefill * active, prefill_context=prefill_context)
        together = Load(batch=self.decode_rows, context=context, prefill=self.prefill_rows)
        deployment = config.deployment(active, max(1, self.experts))
        return step_time(config.model, config.profile, deployment, own, a_max=self._known_a_max, at_experts=together)

    def _known_a_max(self, experts: int, batch: float) -> float:
        found = self._a_max.get((experts, batch))
        if found is None:
            found = self._a_max[experts, batch] = self._config.a_max(experts, batch)
        return found
