"""``janus simulate``: a workload on a cluster that need not exist, in virtual time, by the policies that serve."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

from janus.errors import ConfigError
from janus_cli.console import output, tell
from janus_cli.plan import a_max_table, model_sizes, seconds
from janus_cli.simulate_options import (
    AutoscaleOptions,
    ClusterOptions,
    LimitOptions,
    SimulateOptions,
    WorkloadOptions,
)

if TYPE_CHECKING:
    from janus.core.batcher_config import BatcherConfig
    from janus.core.planning.hardware import Device
    from janus.core.planning.sizes import ModelSizes
    from janus.core.scaling.autoscaler import Autoscaler
    from janus.simulation.config import ClusterConfig

__all__ = [
    "AutoscaleOptions",
    "ClusterOptions",
    "LimitOptions",
    "SimulateOptions",
    "WorkloadOptions",
    "cluster_of",
    "simulate",
]


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
    scaler = _scaler(options, config, slo.tpot_s)
    scaled_by = "" if scaler is None else scaler.model.name
    simulation = Simulation(
        config,
        workload,
        slo=slo,
        seed=options.routing.seed,
        faults=faults_of(options.cluster.fail, duration_s=workload.duration_s, seed=options.routing.seed),
        scaler=scaler,
        tail_percentile=options.scaling.percentile,
    )
    report = simulation.run()
    show(simulation, report, output(), scaled_by=scaled_by)
    if options.json is not None:
        try:
            options.json.write_text(
                json.dumps({**report.as_json(), "scaled_by": scaled_by}, indent=1) + "\n", encoding="utf-8"
            )
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


def _scaler(options: SimulateOptions, config: ClusterConfig, slo_tpot_s: float) -> Autoscaler | None:
    """As in the placement-controller, which knows the model, and a profile if it is given one."""
    if not options.scaling.autoscale:
        return None
    from janus.core.planning.memory import least_experts
    from janus.core.scaling.autoscaler import Autoscaler
    from janus.core.scaling.contract import Counts, ScalingConfig
    from janus.core.scaling.learned import LearnedModel
    from janus.core.scaling.planned import PlannedModel

    scaling, deployment = options.scaling, config.deployment(1, 1)
    held_to = ScalingConfig(
        slo_tpot_s=slo_tpot_s,
        percentile=scaling.percentile,
        low=Counts(attention=1, experts=least_experts(config.model, config.slots)),
        high=Counts(attention=scaling.max_attention, experts=max(scaling.max_experts, config.experts)),
        interval_s=scaling.interval_s,
        look_back_s=max(300.0, scaling.interval_s),
    )
    if scaling.scale_by == "learned":
        learned = LearnedModel(held_to, experts=config.model.experts, top_k=config.model.top_k)
        return Autoscaler(held_to, model=learned)
    planned = PlannedModel.of(
        held_to,
        model=config.model,
        profile=config.profile,
        slots=config.slots,
        a_max=lambda _slots: config.a_max,
        attention_devices=(deployment.attention_device.name,),
        expert_devices=(deployment.expert_device.name,),
        tensor_parallel=config.tensor_parallel,
        micro_batches=config.micro_batches,
        modes=config.modes,
    )
    return Autoscaler(held_to, model=planned)
