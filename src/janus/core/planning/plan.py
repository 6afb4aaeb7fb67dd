"""What a plan is asked for, and what it answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Literal

from janus.core.exchange_routes import MODES, Mode
from janus.core.planning.hardware import Device, HardwareProfile
from janus.core.planning.memory import MemoryBudget, most_slots
from janus.core.planning.performance import AMax, Deployment, StepTime
from janus.core.planning.sizes import ModelSizes
from janus.core.planning.steady import Traffic
from janus.errors import ConfigError

if TYPE_CHECKING:
    from janus.core.planning.plane import Plane

Objective = Literal["devices", "cost"]
#: Attention instances whose full steps the buffers of the experts have room for at a time.
_FULL_STEPS = 8.0


class Violated(StrEnum):
    """Why a deployment will not do: the first of these that holds."""

    #: All expert instances together have fewer slots per layer than there are experts.
    SLOTS = "slots"
    #: The slots that were asked for do not fit on an expert instance.
    EXPERT_MEMORY = "expert-memory"
    #: Weights, KV cache and buffers do not fit on an attention instance.
    ATTENTION_MEMORY = "attention-memory"
    #: More arrives than all streams that there is room for can serve.
    THROUGHPUT = "throughput"
    #: More prompt tokens arrive than steps have room for.
    PREFILL = "prefill"
    TPOT = "tpot"
    TTFT = "ttft"
    #: There are not as many devices of a kind.
    DEVICES = "devices"


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One of two questions: the fewest devices for traffic, or for a batch of streams that is always full.

    Raises:
        ConfigError: numbers that make no question.
    """

    model: ModelSizes
    profile: HardwareProfile
    slo_tpot_s: float
    #: Tables of a_max, by C, slots per instance and layer; asked once per kind of expert device.
    a_max: Callable[[int], AMax]
    #: The percentile of TPOT over requests that the SLO is about; 0 = the mean over tokens.
    percentile: float = 0.0
    #: TTFT in the mean; 0 = no such SLO.
    slo_ttft_s: float = 0.0
    traffic: Traffic | None = None
    #: Share of more load than ``traffic`` that must be borne within the SLO: for bursts.
    headroom: float = 0.0
    #: Streams, where no traffic is given, and tokens of context of each.
    batch: float = 0.0
    context: float = 0.0
    #: Names of the kinds of devices that each role may run on; none = the profile's first.
    attention_devices: Sequence[str] = ()
    expert_devices: Sequence[str] = ()
    #: Devices that there are, by kind; those that are not named are as many as wanted.
    limits: Mapping[str, int] = field(default_factory=dict)
    #: Instances of each role at most.
    most_attention: int = 64
    most_experts: int = 64
    #: Devices per attention instance, and micro-batches, to choose from.
    tensor_parallel: Sequence[int] = (1,)
    micro_batches: Sequence[int] = (1,)
    #: C; 0 = as many as fit.
    slots: int = 0
    #: Streams that one attention instance serves at the same time; 0 = as many as its KV cache has room for.
    max_running: int = 0
    #: Tokens that one step of an attention instance computes at most.
    token_budget: int = 512
    objective: Objective = "devices"
    modes: Sequence[Mode] = MODES

    def __post_init__(self) -> None:
        if (self.traffic is None) == (self.batch == 0):
            raise ConfigError("batch", "either traffic or a batch is the question", "give one of the two")
        for name in ("slo_tpot_s", "batch", "context", "slo_ttft_s", "headroom"):
            value, least = getattr(self, name), 1e-9 if name == "slo_tpot_s" else 0.0
            if not (math.isfinite(value) and value >= least):
                raise ConfigError(name, f"is {value:g}", "give a positive number")
        if 0 < self.batch < 1:
            raise ConfigError("batch", f"is {self.batch:g}", "give at least 1 stream")
        if self.percentile and not 50 <= self.percentile < 100:
            raise ConfigError("percentile", f"is {self.percentile:g}", "give 0 for the mean, or 50 up to below 100")
        for name in ("tensor_parallel", "micro_batches"):
            values = getattr(self, name)
            if not values or min(values) < 1:
                raise ConfigError(name, f"is {list(values)}", "give at least one number, each 1 or more")
        for name in ("most_attention", "most_experts", "token_budget"):
            if getattr(self, name) < 1:
                raise ConfigError(name, f"is {getattr(self, name)}", "give at least 1")
        if not 0 <= self.slots <= self.model.experts:
            raise ConfigError("slots", f"is {self.slots}", f"give 1 to {self.model.experts}, or 0 for as many as fit")
        for kind, limit in self.limits.items():
            self.profile.device(kind)
            if limit < 0:
                raise ConfigError("limits", f"{limit} {kind}", "give 0 or more")

    @property
    def attention_kinds(self) -> list[Device]:
        """Kinds of devices that attention may run on."""
        return [self.profile.device(name) for name in self.attention_devices] or [self.profile.device()]

    @property
    def expert_kinds(self) -> list[Device]:
        """Kinds of devices that experts may run on."""
        return [self.profile.device(name) for name in self.expert_devices] or [self.profile.device()]

    def slots_on(self, device: Device) -> int:
        """Return C on ``device``: what was asked for, or as many as fit beside the buffers of a full step."""
        return self.slots or most_slots(self.model, device, rows=self.rows)

    @property
    def rows(self) -> float:
        """Tokens that come to the experts in one step at most: more full steps rarely fall together."""
        return max(self.batch, _FULL_STEPS * self.token_budget)

    @property
    def demand(self) -> Traffic | None:
        """The traffic with its headroom."""
        return None if self.traffic is None else self.traffic.times(1 + self.headroom)

    @property
    def tail(self) -> str:
        """What the SLO is about, in words."""
        return f"P{self.percentile:g} TPOT" if self.percentile else "mean TPOT"


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One deployment, and how it does."""

    deployment: Deployment
    #: C.
    slots: int
    #: Streams in service, in the mean and at the percentile (99 where the SLO is about the mean).
    batch: float
    batch_tail: float
    #: Seconds; infinite where the load is more than the deployment can serve.
    tpot_s: float
    tpot_tail_s: float
    ttft_s: float
    #: A step without prompts: what lies between it and TPOT is theirs.
    decode_step_s: float
    a_max: float
    #: TPG: output tokens per second and device.
    tokens_per_device_s: float
    violated: Violated | None = None
    #: In words: what is violated, or, of a neighbour, why it is not chosen.
    why: str = ""

    @property
    def name(self) -> str:
        """As the paper writes it: 2A6E; with more devices per attention instance, 2x4A6E."""
        d = self.deployment
        return f"{d.attention}{'' if d.tensor_parallel == 1 else f'x{d.tensor_parallel}'}A{d.experts}E"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The answer."""

    problem: Problem
    #: The best; ``None``: nothing will do, and ``nearest`` says what stands in the way.
    chosen: Point | None
    nearest: Point
    #: Feasible points of which no other is at most as dear and quicker; from the cheapest on.
    frontier: tuple[Point, ...]
    #: Those beside the chosen one, and the best with one other kind, width or number of micro-batches: why they lose.
    neighbours: tuple[Point, ...]
    #: Memory per device of the chosen (or nearest) one: attention, experts.
    attention_memory: MemoryBudget
    expert_memory: MemoryBudget
    #: Where the seconds of its steps without prompts go.
    step: StepTime
    #: The variant that the chosen (or nearest) one is of, over all (n_a, n_e).
    plane: Plane
    #: Points that were looked at, and those that would do.
    looked_at: int
    feasible: int
