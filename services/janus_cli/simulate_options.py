"""The options of ``janus simulate``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from janus.config.fields import check_ranges, option
from janus.config.options import DType
from janus.errors import ConfigError
from janus_cli.plan_options import RoutingOptions

if TYPE_CHECKING:
    from janus.simulation.workloads import Workload

_LOAD, _CLUSTER, _LIMITS, _SCALING = "Load", "Cluster", "Limits", "Scaling"
#: Seconds of a workload in words, unless it says.
_WORDS_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadOptions:
    """What arrives."""

    workload: str = option(
        help="CSV of requests (Azure LLM inference, BurstGPT), or KIND:RATE[,OPTION=VALUE...] in requests per second: "
        "constant, poisson, gamma (cv), diurnal (peak, period), bursty (peak, burst, calm), each with prompt, output "
        "and spread of their lengths.",
        unit="file|kind:rate",
        panel=_LOAD,
    )
    start_s: float = option(0.0, help="Where in a file to begin.", unit="seconds", minimum=0, panel=_LOAD)
    duration_s: float = option(
        0.0,
        help="How long requests arrive.",
        unit="seconds",
        default_text=f"a file's length, else {_WORDS_S:g}",
        minimum=0,
        panel=_LOAD,
    )
    rate_scale: float = option(
        1.0, help="Let the requests come so many times as fast.", unit="factor", minimum=1e-6, panel=_LOAD
    )

    def __post_init__(self) -> None:
        check_ranges(self)

    def read(self, *, seed: int, max_model_len: int) -> Workload:
        """Return the workload."""
        from janus.simulation.workloads import workload_of

        in_words = ":" in self.workload and not Path(self.workload).exists()
        if in_words:
            found = workload_of(self.workload, duration_s=self.duration_s or _WORDS_S, seed=seed)
        else:
            found = workload_of(self.workload, duration_s=0.0)
            end_s = self.start_s + self.duration_s if self.duration_s else found.duration_s
            if (self.start_s, end_s) != (0.0, found.duration_s):
                found = found.between(self.start_s, end_s)
        return found.faster(self.rate_scale).within(max_model_len)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterOptions:
    """What it runs on."""

    system: Literal["janus", "monolithic", "megascale", "xdeepserve"] = option(
        "janus",
        help="Whose decisions: Janus's, or others' as the paper models them. monolithic: every device has both roles, "
        "and there are --attention times --tensor-parallel of them; eplb places, tokens are balanced. megascale: eplb, "
        "random replicas, direct exchange. xdeepserve: eplb, balanced tokens, direct exchange.",
        panel=_CLUSTER,
    )
    attention: int = option(1, help="Attention instances at the start.", unit="instances", minimum=1, panel=_CLUSTER)
    experts: int = option(
        0,
        help="Expert instances at the start.",
        unit="instances",
        default_text="as few as hold every expert",
        minimum=0,
        panel=_CLUSTER,
    )
    slots: int = option(
        0,
        help="Slots per expert instance and layer.",
        unit="slots",
        default_text="as many as fit",
        minimum=0,
        panel=_CLUSTER,
    )
    attention_device: str = option(
        "", help="Kind of the profile that attention runs on.", default_text="the first", panel=_CLUSTER
    )
    expert_device: str = option("", help="Kind that experts run on.", default_text="the first", panel=_CLUSTER)
    tensor_parallel: int = option(1, help="Devices per attention instance.", unit="devices", minimum=1, panel=_CLUSTER)
    micro_batches: int = option(1, help="Micro-batches that take turns.", minimum=1, panel=_CLUSTER)
    start_after_s: float = option(
        5.0,
        help="From the launch of an instance until it begins to load its weights.",
        unit="seconds",
        minimum=0,
        panel=_CLUSTER,
    )
    fail: str = option(
        "",
        help="What dies, and when: expert@60, attention-1@30+never, node@90+20, expert:2/h; separated by commas. It is "
        "launched again after a second, or as + says.",
        unit="faults",
        default_text="nothing",
        panel=_CLUSTER,
    )

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitOptions:
    """As of the attention-server and the gateway."""

    max_running: int = option(
        64, help="Sequences that an instance generates at a time.", unit="sequences", minimum=1, panel=_LIMITS
    )
    token_budget: int = option(
        512, help="Tokens in one step of an attention instance.", unit="tokens", minimum=1, panel=_LIMITS
    )
    block_size: int = option(16, help="Tokens in one KV block.", unit="tokens", minimum=1, panel=_LIMITS)
    kv_blocks: int = option(
        0, help="KV blocks of an instance.", unit="blocks", default_text="as many as fit", minimum=0, panel=_LIMITS
    )
    max_model_len: int = option(8192, help="Longest prompt plus output.", unit="tokens", minimum=2, panel=_LIMITS)
    max_queue: int = option(
        0,
        help="Requests that may be in flight or queued; one more is answered 429.",
        unit="requests",
        default_text="four times what may be generated at a time at the start",
        minimum=0,
        panel=_LIMITS,
    )

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoscaleOptions:
    """What the autoscaler may do."""

    autoscale: bool = option(
        False, help="Let the autoscaler of the placement-controller follow the load.", panel=_SCALING
    )
    max_attention: int = option(16, help="Attention instances at most.", minimum=1, panel=_SCALING)
    max_experts: int = option(32, help="Expert instances at most.", minimum=1, panel=_SCALING)
    interval_s: float = option(
        60.0, help="Between two decisions, unless one is urgent.", unit="seconds", minimum=1, panel=_SCALING
    )
    percentile: float = option(
        99.0,
        help="Percentile of TPOT over requests that the SLO is about; 0 = the mean.",
        maximum=99.99,
        panel=_SCALING,
    )
    scale_by: Literal["profile", "learned"] = option(
        "profile",
        help="Where its expectations of other numbers of instances are from: the planner, by --hardware, as in a "
        "controller that has a profile; or what it has learned, as in one that has none.",
        panel=_SCALING,
    )

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulateOptions:
    """Let a workload run on a cluster that need not exist, in virtual time, and say what clients would see.

    Admission, batching, placement, membership and scaling are the code that serves; step times are the planner's. The
    same arguments give the same figures.
    """

    model: str = option(help="Name of a model, or its config.json or directory.", unit="model")
    hardware: str = option("h100-80gb", help="Hardware profile: its name, or a file of janus profile.", unit="profile")
    dtype: DType | None = option(None, help="Type of weights and KV cache.", default_text="as published")
    slo_tpot: str = option("", help="TPOT that requests should see: 150ms.", unit="duration", default_text="none")
    slo_ttft: str = option("", help="TTFT that they should see: 2s.", unit="duration", default_text="none")
    load: WorkloadOptions
    cluster: ClusterOptions
    limits: LimitOptions
    routing: RoutingOptions
    scaling: AutoscaleOptions
    json: Path | None = option(None, help="File to write the figures to, as JSON.", default_text="none")

    def __post_init__(self) -> None:
        if self.scaling.autoscale and not self.slo_tpot:
            raise ConfigError("--autoscale", "there is no SLO to scale by", "give --slo-tpot")
        if self.scaling.autoscale and self.cluster.system == "monolithic":
            raise ConfigError("--autoscale", "whole models have no pools to scale", "leave it out, or take janus")
