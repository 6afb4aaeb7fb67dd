"""How long the steps of one attention instance take, beside those of all others that use the same experts.

What is modelled: expert instances compute everything that waits for a layer together (``core/expert_queue.py``), and
attention instances that were answered together dispatch the next layer together, so that they stay in step. Hence a
step takes its instance's own attention and exchange, and the experts' time for the rows of all steps that are computed
at the time when it begins. That is equation 1 for instances that are not alike (``step_time(at_experts=...)``).

Where all share the cores of one host, steps do not meet at the experts, but wait for cores: ``shared_host.py``.
"""

from __future__ import annotations

from typing import TypeAlias

from janus.core.planning.layer_times import attention_layer_s, exchange_layer_s, expert_layer_s, other_s
from janus.core.planning.performance import Deployment, Load, StepTime, moe_layer_s, step_time
from janus.simulation.config import ClusterConfig
from janus.simulation.shared_host import SharedHost

#: Remembered parts of steps, at most: a long run of many different prompts would remember for ever.
_MOST = 200_000
#: Seconds of one layer's attention without context, what each token of mean context adds, of the shared experts, of
#: one layer's exchange, and of a step besides its layers.
_Own: TypeAlias = tuple[float, float, float, float, float]


class StepClock:
    """Step times of a cluster whose numbers and total rows change."""

    def __init__(self, config: ClusterConfig) -> None:
        self._config = config
        #: Instances that serve, and attention instances that compute a step now.
        self.experts = config.experts
        self.attention = 0
        self.active = 0
        #: Instances of one machine have their shares of its cores whether the others compute or not. A whole model's
        #: devices are as many.
        self._all_count = config.colocated or bool(config.deployment(1, 1).attention_device.shared_cores)
        #: Rows of all steps that are computed now: streams that decode, and prompt tokens.
        self.decode_rows = 0
        self.prefill_rows = 0
        #: Streams of a typical step, and how long it took when ``has_shifted`` last said yes. Without context, as that
        #: is nothing that others change.
        self._typical = 1
        self._took_s = 0.0
        self._a_max: dict[tuple[int, float], float] = {}
        self._own: dict[tuple[int, int, int, int], _Own] = {}
        self._deployments: dict[tuple[int, int], Deployment] = {}
        self._experts_s: tuple[tuple[int, int, int], float] = ((0, 0, 0), 0.0)
        on_one = config.profile.host.cores and not config.colocated
        #: The host that everything shares, if it does.
        self.host = SharedHost(config, self._known_a_max) if on_one else None

    def begin(self, *, decode: int, prefill: int, context: float = 0.0) -> float:
        """A step, or a run of alike ones, of so many rows begins. Returns what it wants of a shared host."""
        self.active += 1
        self.decode_rows += decode
        self.prefill_rows += prefill
        if self.host is None:
            return 0.0
        return self.host.begin(self._deployment(), Load(batch=decode, context=context, prefill=prefill))

    def end(self, *, decode: int, prefill: int, wanted_s: float = 0.0) -> None:
        """It is over."""
        self.active -= 1
        self.decode_rows -= decode
        self.prefill_rows -= prefill
        if self.host is not None:
            self.host.end(wanted_s, last=not self.active)

    def has_shifted(self) -> bool:
        """Return whether, through what others compute, steps take notably longer or shorter than when it was last."""
        if not self.active:
            return False
        took_s = self.step_s(decode=self._typical, context=1.0)
        if abs(took_s - self._took_s) <= self._config.tolerance * self._took_s:
            return False
        self._typical = max(1, self.decode_rows // self.active)
        self._took_s = self.step_s(decode=self._typical, context=1.0)
        return True

    def split(self, *, decode: int, context: float, prefill: int = 0, prefill_context: float = 0.0) -> StepTime:
        """Return where the seconds of such a step go."""
        config, active = self._config, self._deployment().attention
        if self.host is not None:
            load = Load(batch=decode, context=context, prefill=prefill, prefill_context=prefill_context)
            return self.host.split(self._deployment(), load)
        own = Load(batch=decode * active, context=context, prefill=prefill * active, prefill_context=prefill_context)
        return step_time(
            config.model,
            config.profile,
            self._deployment(),
            own,
            a_max=self._known_a_max,
            at_experts=self._together(),
            modes=config.modes,
        )

    def step_s(
        self, *, decode: int, context: float, prefill: int = 0, prefill_context: float = 0.0, backlog_s: float = 0.0
    ) -> float:
        """Return the seconds of a step of ``decode`` streams of ``context`` tokens each and ``prefill`` prompt tokens,
        which look back on ``prefill_context`` tokens.

        The step itself has begun: it is part of what the experts compute. The same as ``split(...).total_s``, from
        parts that are remembered. ``backlog_s``: core-seconds of requests in the way, on a shared host.
        """
        config, model = self._config, self._config.model
        if self.host is not None:
            load = Load(batch=decode, context=context, prefill=prefill, prefill_context=prefill_context)
            return self.host.step_s(self._deployment(), load, backlog_s=backlog_s)
        if config.micro_batches > 1:
            split = self.split(decode=decode, context=context, prefill=prefill, prefill_context=prefill_context)
            return split.total_s
        deployment = self._deployment()
        if prefill:
            # Prompts differ too much to be remembered, but for the rest of the step.
            _, _, shared, exchange, other = self._own_s(decode, prefill)
            active = deployment.attention
            load = Load(
                batch=decode * active, context=context, prefill=prefill * active, prefill_context=prefill_context
            )
            attention, _ = attention_layer_s(model, config.profile, deployment, load)
        else:
            fixed, per_token, shared, exchange, other = self._own_s(decode, 0)
            attention = fixed + per_token * context
        layer = moe_layer_s(deployment, attention, shared, exchange, self._experts_layer_s())
        return (model.layers - model.moe_layers) * attention + model.moe_layers * layer + other

    def _own_s(self, decode: int, prefill: int) -> _Own:
        key = (decode, prefill, self._deployment().attention, self.experts)
        found = self._own.get(key)
        if found is None:
            model, profile, deployment = self._config.model, self._config.profile, self._deployment()
            active = deployment.attention
            loads = [Load(batch=decode * active, context=c, prefill=prefill * active) for c in (0.0, 1.0)]
            (fixed, shared), (with_one, _) = (attention_layer_s(model, profile, deployment, each) for each in loads)
            _, exchange = exchange_layer_s(model, profile, deployment, loads[0], self._config.modes)
            if len(self._own) >= _MOST:
                self._own.clear()
            found = (fixed, with_one - fixed, shared, exchange, other_s(model, profile, deployment, loads[0]))
            self._own[key] = found
        return found

    def _experts_layer_s(self) -> float:
        key = (self.decode_rows, self.prefill_rows, self.experts)
        if key != self._experts_s[0]:
            load, deployment = self._together(), self._deployment()
            a_max = self._known_a_max(deployment.experts, max(1.0, load.rows))
            self._experts_s = (key, expert_layer_s(self._config.model, self._config.profile, deployment, load, a_max))
        return self._experts_s[1]

    def _together(self) -> Load:
        return Load(batch=self.decode_rows, context=0.0, prefill=self.prefill_rows)

    def _deployment(self) -> Deployment:
        key = (max(1, self.active, self.attention if self._all_count else 0), max(1, self.experts))
        found = self._deployments.get(key)
        if found is None:
            found = self._deployments[key] = self._config.deployment(*key)
        return found

    def _known_a_max(self, experts: int, batch: float) -> float:
        found = self._a_max.get((experts, batch))
        if found is None:
            found = self._a_max[experts, batch] = self._config.a_max(experts, batch)
        return found
