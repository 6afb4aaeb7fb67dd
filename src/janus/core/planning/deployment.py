"""What a step is priced for: a cluster, and what it computes."""

from __future__ import annotations

from dataclasses import dataclass

from janus.core.planning.hardware import Device


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """A cluster, as the performance model sees it."""

    #: Instances of each role, and the kinds of devices that they run on.
    attention: int
    experts: int
    attention_device: Device
    expert_device: Device
    #: Devices per attention instance.
    tensor_parallel: int = 1
    #: Micro-batches that take turns.
    micro_batches: int = 1
    #: Both roles run on the same devices, as in monolithic systems: ``attention * tensor_parallel == experts``.
    colocated: bool = False

    @property
    def devices(self) -> int:
        """Devices in all."""
        return self.attention * self.tensor_parallel + (0 if self.colocated else self.experts)

    @property
    def cost_per_hour(self) -> float:
        """What they cost."""
        attention = self.attention * self.tensor_parallel * self.attention_device.cost_per_hour
        return attention + (0.0 if self.colocated else self.experts * self.expert_device.cost_per_hour)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What one step computes, over all attention instances."""

    #: Streams that decode: one token each. May be fractional, as a mean.
    batch: float
    #: Tokens of context per stream.
    context: float
    #: Prompt tokens that the same step computes.
    prefill: float = 0.0
    #: Tokens of its prompt that such a token looks back on, as a mean; ``None`` = ``context``.
    prefill_context: float | None = None

    @property
    def rows(self) -> float:
        """Tokens computed."""
        return self.batch + self.prefill
