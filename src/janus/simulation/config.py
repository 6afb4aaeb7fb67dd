"""What is simulated: the cluster, its limits, and what goes wrong."""

from __future__ import annotations

from dataclasses import dataclass, field

from janus.core.admission import AdmissionConfig
from janus.core.batcher_config import BatcherConfig
from janus.core.exchange_routes import MODES, Mode
from janus.core.planning.hardware import Device, HardwareProfile
from janus.core.planning.performance import AMax, Deployment
from janus.core.planning.sizes import ModelSizes
from janus.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterConfig:
    """A cluster to be simulated. Its limits have the names, and mostly the defaults, of the services' options."""

    model: ModelSizes
    profile: HardwareProfile
    a_max: AMax
    attention: int
    experts: int
    #: Replicas per MoE layer that an expert instance holds, C.
    slots: int
    #: Limits of every attention instance.
    batcher: BatcherConfig
    admission: AdmissionConfig
    attention_device: Device | None = None
    expert_device: Device | None = None
    tensor_parallel: int = 1
    micro_batches: int = 1
    #: Both roles are on the same devices, ``experts`` of them, as in monolithic systems.
    colocated: bool = False
    #: Ways to exchange that the cluster has.
    modes: tuple[Mode, ...] = MODES
    #: ``janus.core.placing.POLICIES``.
    placement: str = "static"
    heartbeat_s: float = 0.5
    #: From the launch of a process until it registers; loading comes on top, at the device's rate.
    start_s: float = 5.0
    #: Seconds that the gateway takes per request, one request after the other; ``None`` = what the profile's host says.
    accept_s: float | None = None
    #: Until a peer's death is noticed: the link breaks.
    notice_s: float = 0.005
    recovery_timeout_s: float = 10.0
    #: An attention instance that leaves hands over what it has not finished after so long.
    drain_s: float = 60.0
    #: How often a scaler is shown the cluster.
    observe_s: float = 5.0
    #: Relative change of step times, through what others compute, below which a run of alike steps is not cut.
    tolerance: float = 0.005

    def __post_init__(self) -> None:
        for name in ("attention", "experts", "slots"):
            if getattr(self, name) < 1:
                raise ConfigError(name, f"is {getattr(self, name)}", "give at least 1")
        if self.colocated and self.attention * self.tensor_parallel != self.experts:
            raise ConfigError(
                "attention",
                f"{self.attention} instances of {self.tensor_parallel} devices are not the experts' {self.experts}",
                "give as many devices to both roles",
            )
        if self.experts * self.slots < self.model.experts:
            needed = -(-self.model.experts // self.slots)
            raise ConfigError(
                "experts",
                f"{self.experts} instances of {self.slots} slots do not hold the {self.model.experts} experts",
                f"give at least {needed} instances, or {-(-self.model.experts // self.experts)} slots",
            )

    @property
    def accepts_s(self) -> float:
        """Seconds that the gateway takes per request."""
        return self.profile.host.gateway_request_s if self.accept_s is None else self.accept_s

    def deployment(self, attention: int, experts: int) -> Deployment:
        """Return so many instances, as the performance model takes them."""
        return Deployment(
            attention=attention,
            experts=experts,
            attention_device=self.attention_device or self.profile.device(),
            expert_device=self.expert_device or self.profile.device(),
            tensor_parallel=self.tensor_parallel,
            micro_batches=self.micro_batches,
            colocated=self.colocated,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """What a request should get; 0 = not asked for."""

    tpot_s: float = 0.0
    ttft_s: float = 0.0

    def met(self, *, tpot_s: float, ttft_s: float) -> bool:
        """Whether a request of these times got it."""
        return (not self.tpot_s or tpot_s <= self.tpot_s) and (not self.ttft_s or ttft_s <= self.ttft_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One process, or all of a node, dies at a moment."""

    at_s: float
    #: "attention", "expert" or "node": any of them, drawn; or the name of an instance or node.
    target: str
    #: Until it is launched again; ``None`` = never.
    back_s: float | None = field(default=1.0)
