"""Options that several executables take alike, each written once: bases of their options' dataclasses.

Without slots: a class may have several of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from janus.config.fields import option

DType: TypeAlias = Literal["float32", "bfloat16"]
Device: TypeAlias = Literal["auto", "cpu", "cuda"]
Transport: TypeAlias = Literal["ucx", "tcp"]
LogLevel: TypeAlias = Literal["debug", "info", "warning", "error"]
LogFormat: TypeAlias = Literal["console", "json"]
MicroBatches: TypeAlias = Literal["auto", "1", "2", "3", "4"]
ExchangeName: TypeAlias = Literal["auto", "direct", "aggregated", "two-phase"]
GateSide: TypeAlias = Literal["attention", "expert"]
PlacementName: TypeAlias = Literal["static", "eplb", "activation-aware"]
SchedulerName: TypeAlias = Literal["aebs", "aebs-greedy", "token-balanced", "random", "static"]

#: CPU threads of one process that can be meant.
MAX_THREADS = 4096
#: Panels of the help.
NETWORK, LOGS, COMPUTE, PROCESS = "Network", "Logs", "Model and compute", "Process"


@dataclass(frozen=True, kw_only=True)
class ProcessOptions:
    """How a process of a cluster talks, ends and logs; ``janus up`` passes its own on to every instance."""

    transport: Transport = option(
        "ucx",
        help="How instances talk. tcp needs no UCX and is for diagnosis; all instances use the same.",
        panel=NETWORK,
    )
    drain_timeout_s: float = option(
        10.0,
        help="After SIGTERM, how long requests in flight may take to finish.",
        unit="seconds",
        minimum=0,
        panel=PROCESS,
    )
    log_level: LogLevel = option("info", help="Least severe event that is logged.", panel=LOGS)
    log_format: LogFormat = option("console", help="Form of the log lines on stderr.", panel=LOGS)


@dataclass(frozen=True, kw_only=True)
class ComputeOptions:
    """What is computed in, and where: attention- and expert-servers."""

    dtype: DType = option(
        "float32", help="Type of weights, KV cache and activations; the same on every instance.", panel=COMPUTE
    )
    device: Device = option("auto", help="Where to compute; auto takes a GPU when there is one.", panel=COMPUTE)
    gate: GateSide = option(
        "attention",
        help="Who chooses the experts. attention: the attention instance, and sends rows to where they are needed; "
        "expert: every expert instance, from all activations.",
        panel=COMPUTE,
    )


@dataclass(frozen=True, kw_only=True)
class DispatchOptions:
    """How an attention instance reaches the experts."""

    scheduler: SchedulerName = option(
        "aebs",
        help="Which replica serves an activated expert. aebs: the busiest instance reads the fewest experts possible; "
        "aebs-greedy: the same by a quick rule; token-balanced: tokens in turn over all replicas; random; "
        "static: the first replica.",
        panel=COMPUTE,
    )
    micro_batches: MicroBatches = option(
        "auto",
        help="Parts that the running sequences are split into, so that one computes attention while the others are "
        "with the experts. auto: more than one where measurement shows that it pays.",
        panel=COMPUTE,
    )
    exchange: ExchangeName = option(
        "auto",
        help="How activations reach the experts. direct: a message per expert instance; aggregated: the instances of a "
        "node send as one; two-phase: that, and one message per expert node; auto: whatever takes the least time.",
        panel=COMPUTE,
    )


@dataclass(frozen=True, kw_only=True)
class PlacementOptions:
    """Which experts are replicated, and where."""

    slots_per_instance: int = option(
        0,
        help="Experts that each expert instance holds per MoE layer; more than an even share makes replicas.",
        unit="slots",
        default_text="0 = an even share",
        minimum=0,
        panel=COMPUTE,
    )
    placement: PlacementName = option(
        "activation-aware",
        help="Where replicas go. static: evenly; eplb: the same number of tokens everywhere; activation-aware: the "
        "busiest instance activates as few distinct experts as possible.",
        panel=COMPUTE,
    )
    activations: str = option(
        "",
        help='JSON file with how often each expert was activated, {"activations": [[count per expert] per MoE layer]}: '
        "spare slots go to the busiest experts. Counts until as much has been sampled.",
        default_text="none: all alike",
        panel=COMPUTE,
    )
