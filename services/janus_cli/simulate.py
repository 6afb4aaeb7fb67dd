"""``janus simulate``: a workload on a cluster that need not exist, in virtual time, by the policies that serve."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from janus.config.fields import check_ranges, option
from janus.config.options import DType
from janus.errors import ConfigError
from janus_cli.console import output, tell
from janus_cli.plan import RoutingOptions, a_max_table, model_sizes, seconds

if TYPE_CHECKING:
    from janus.core.batcher_config import BatcherConfig
    from janus.core.planning.hardware import Device
    from janus.core.planning.sizes import ModelSizes
    from janus.simulation.config import ClusterConfig
    from janus.simulation.scaler import Scaler
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


def simulate(options: SimulateOptions) -> int:
    """Run, and show."""
    from janus.simulation.config import Slo
    from janus.simulation.faults import faults_of
    from janus.simulation.simulator import Simulation
    from janus_cli.simulate_tables import show

    config = cluster_of(options)
    workload = options.load.read(seed=options.routing.seed, max_model_len=options.limits.max_model_len)
    slo = Slo(
        tpot_s=seconds("--slo-tpot", options.slo_tpot) if options.slo_tpot else 0.0,
        ttft_s=seconds("--slo-ttft", options.slo_ttft) if options.slo_ttft else 0.0,
    )
    simulation = Simulation(
        config,
        workload,
        slo=slo,
        seed=options.routing.seed,
        faults=faults_of(options.cluster.fail, duration_s=workload.duration_s, seed=options.routing.seed),
        scaler=_scaler(options, config, slo.tpot_s),
        tail_percentile=options.scaling.percentile,
    )
    report = simulation.run()
    show(simulation, report, output())
    if options.json is not None:
        try:
            options.json.write_text(json.dumps(report.as_json(), indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                "--json", f"{options.json}: {error.strerror}", "name a file that can be written"
            ) from error
        tell(f"{options.json}: written")
    return 0


def cluster_of(options: SimulateOptions) -> ClusterConfig:
    """Return the cluster that the options describe.

    Raises:
        ConfigError: it cannot hold the model, or an option names what there is not.
    """
    from janus.core.admission import AdmissionConfig
    from janus.core.exchange_routes import MODES
    from janus.core.planning.baselines import BASELINES
    from janus.core.planning.memory import least_experts, most_slots
    from janus.profiles import load_profile
    from janus.simulation.config import ClusterConfig

    model, profile = model_sizes(options.model, options.dtype), load_profile(options.hardware)
    chosen, limits, routing = options.cluster, options.limits, options.routing
    system = BASELINES.get(chosen.system)
    if system is not None:
        routing = replace(routing, placement=system.placement, scheduler=system.scheduler)
    colocated = chosen.system == "monolithic"
    attention_device = profile.device(chosen.attention_device or None)
    expert_device = attention_device if colocated else profile.device(chosen.expert_device or None)
    experts = chosen.attention * chosen.tensor_parallel if colocated else chosen.experts
    slots = chosen.slots or (-(-model.experts // experts) if colocated else most_slots(model, expert_device))
    if slots < 1:
        raise ConfigError(
            "--hardware",
            f"no expert of each layer of {model.name} fits on {expert_device.name}",
            "take a larger device",
        )
    experts = experts or least_experts(model, slots)
    most = max(experts, options.scaling.max_experts if options.scaling.autoscale else 0)
    in_flight = limits.max_queue or 4 * chosen.attention * limits.max_running
    beside = slots * model.moe_layers * model.expert_bytes if colocated else 0.0
    return ClusterConfig(
        model=model,
        profile=profile,
        a_max=a_max_table(routing, model, slots, most),
        attention=chosen.attention,
        experts=experts,
        slots=slots,
        batcher=_batcher(options, model, attention_device, beside),
        admission=AdmissionConfig(max_requests=in_flight, max_tokens=in_flight * limits.max_model_len),
        attention_device=attention_device,
        expert_device=expert_device,
        tensor_parallel=chosen.tensor_parallel,
        micro_batches=chosen.micro_batches,
        colocated=colocated,
        modes=MODES if system is None else system.modes,
        start_s=chosen.start_after_s,
    )


def _batcher(options: SimulateOptions, model: ModelSizes, device: Device, beside: float) -> BatcherConfig:
    """Limits of an attention instance on ``device``, which has ``beside`` bytes of experts too."""
    from janus.core.batcher_config import BatcherConfig
    from janus.core.planning.memory import attention_memory, kv_bytes_per_stream

    chosen, limits = options.cluster, options.limits
    empty = attention_memory(
        model,
        device,
        streams=limits.max_running,
        context=0.0,
        tensor_parallel=chosen.tensor_parallel,
        rows=limits.token_budget,
    )
    per_block = limits.block_size * kv_bytes_per_stream(model, 1.0, chosen.tensor_parallel)
    blocks = limits.kv_blocks or int((empty.usable - empty.total - beside) // per_block)
    if blocks < 1:
        raise ConfigError(
            "--hardware",
            f"the weights of {model.name} leave no room for a KV cache on {device.name}",
            "take a larger device, more of them, or a larger --tensor-parallel",
        )
    longest = -(-limits.max_model_len // limits.block_size)
    return BatcherConfig(
        max_running=limits.max_running,
        token_budget=max(limits.token_budget, limits.max_running),
        block_size=limits.block_size,
        # More than the longest of all of them need is never used.
        num_blocks=min(blocks, limits.max_running * longest),
        max_model_len=limits.max_model_len,
        max_waiting=1024,
    )


def _scaler(options: SimulateOptions, config: ClusterConfig, slo_tpot_s: float) -> Scaler | None:
    if not options.scaling.autoscale:
        return None
    from janus.core.planning.memory import least_experts
    from janus.core.scaling.autoscaler import Autoscaler
    from janus.core.scaling.contract import Counts, ScalingConfig
    from janus.core.scaling.learned import LearnedModel

    scaling = options.scaling
    held_to = ScalingConfig(
        slo_tpot_s=slo_tpot_s,
        percentile=scaling.percentile,
        low=Counts(attention=1, experts=least_experts(config.model, config.slots)),
        high=Counts(attention=scaling.max_attention, experts=max(scaling.max_experts, config.experts)),
        interval_s=scaling.interval_s,
        look_back_s=max(300.0, scaling.interval_s),
    )
    # As in the placement-controller, which knows the model.
    return Autoscaler(held_to, model=LearnedModel(held_to, experts=config.model.experts, top_k=config.model.top_k))
