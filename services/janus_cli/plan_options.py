"""The options of ``janus plan``; those of routing are ``janus simulate``'s too."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from janus.config.fields import check_ranges, option
from janus.config.options import DType, PlacementName
from janus.errors import ConfigError

_LOAD, _ROUTING, _SPACE = "Load", "Routing", "What may be chosen"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """What is to be served: a rate, a file of requests, or a batch that is always full."""

    rate: float = option(
        0.0, help="Requests per second.", unit="requests/s", default_text="none", minimum=0, panel=_LOAD
    )
    input: float = option(512.0, help="Mean tokens of a prompt.", unit="tokens", minimum=0, panel=_LOAD)
    output: float = option(256.0, help="Mean tokens of an answer.", unit="tokens", minimum=1, panel=_LOAD)
    burstiness: float = option(
        1.0,
        help="Coefficient of variation of the times between arrivals: 1 = Poisson, more = bursts.",
        minimum=0,
        panel=_LOAD,
    )
    workload: str = option(
        "",
        help="Instead: CSV of requests (Azure LLM inference, BurstGPT), or one in words as for janus simulate. "
        "The plan is for its busiest window.",
        unit="file",
        default_text="none",
        panel=_LOAD,
    )
    window_s: float = option(900.0, help="Length of that window.", unit="seconds", minimum=1, panel=_LOAD)
    batch: float = option(
        0.0,
        help="Instead: streams that decode at the same time, always.",
        unit="streams",
        default_text="none",
        minimum=0,
        panel=_LOAD,
    )
    context: float = option(
        0.0,
        help="With --batch: tokens of context of each.",
        unit="tokens",
        default_text="--input and half of --output",
        minimum=0,
        panel=_LOAD,
    )
    headroom: float = option(
        0.2,
        help="Share of more load than that which must be borne within the SLO.",
        unit="share",
        minimum=0,
        panel=_LOAD,
    )

    def __post_init__(self) -> None:
        check_ranges(self)
        given = [name for name in ("rate", "workload", "batch") if getattr(self, name)]
        if len(given) != 1:
            found = " and ".join(f"--{name}" for name in given) if given else "no load"
            raise ConfigError("--rate", f"{found} is given", "give one of --rate, --workload and --batch")


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingOptions:
    """Which experts tokens choose: a_max follows from it."""

    trace: Path | None = option(
        None, help="Trace of janus trace export.", default_text="none: synthetic routing", panel=_ROUTING
    )
    popularity: float = option(
        0.0,
        help="Without a trace: exponent of Zipf's law for the popularity of experts. 0, all alike, activates the most.",
        minimum=0,
        panel=_ROUTING,
    )
    placement: PlacementName | None = option(
        None,
        help="Who places replicas.",
        # Where tokens choose experts independently, as in synthetic routing, the even deal is as good.
        default_text="with a trace activation-aware, else static",
        panel=_ROUTING,
    )
    scheduler: Literal["aebs", "aebs-greedy", "random", "static", "token-balanced"] = option(
        "aebs", help="Who chooses replicas.", panel=_ROUTING
    )
    draws: int = option(
        16, help="Batches of each size and layer that a_max is the mean of.", unit="batches", minimum=1, panel=_ROUTING
    )
    seed: int = option(0, help="Of what is drawn.", panel=_ROUTING)

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceOptions:
    """What the plan may choose from."""

    attention_devices: str = option(
        "",
        help="Kinds of the profile that attention may run on, separated by commas.",
        default_text="all",
        panel=_SPACE,
    )
    expert_devices: str = option("", help="Kinds that experts may run on.", default_text="all", panel=_SPACE)
    limits: str = option(
        "", help="Devices that there are, by kind: H100-80GB=16,H20-96GB=8.", default_text="no limits", panel=_SPACE
    )
    objective: Literal["devices", "cost", "auto"] = option(
        "auto", help="What to have least of; auto: cost where kinds differ, else devices.", panel=_SPACE
    )
    max_attention: int = option(64, help="Attention instances at most.", minimum=1, maximum=64, panel=_SPACE)
    max_experts: int = option(64, help="Expert instances at most.", minimum=1, maximum=64, panel=_SPACE)
    slots: int = option(
        0, help="Slots per expert instance and layer.", default_text="as many as fit", minimum=0, panel=_SPACE
    )
    micro_batches: str = option("1,2", help="Micro-batches to choose from.", panel=_SPACE)
    tensor_parallel: str = option(
        "1",
        help="Devices per attention instance to choose from. Janus serves with 1: more is for comparison.",
        panel=_SPACE,
    )
    max_running: int = option(
        0,
        help="Streams of one attention instance at most.",
        default_text="as many as its memory has room for",
        minimum=0,
        panel=_SPACE,
    )
    token_budget: int = option(
        512, help="Tokens in one step of an attention instance.", unit="tokens", minimum=1, panel=_SPACE
    )

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """Say how many instances of each role a load needs within an SLO, on which devices, and why not fewer.

    Ends with status 1 when nothing that may be chosen keeps it, and says what stands in the way.
    """

    model: str = option(help="Name of a model, such as DeepSeek-V2, or its config.json or directory.", unit="model")
    hardware: str = option("h100-80gb", help="Hardware profile: its name, or a file of janus profile.", unit="profile")
    slo_tpot: str = option(help="TPOT to keep: 150ms, 0.15s.", unit="duration")
    percentile: float = option(
        99.0,
        help="Percentile of TPOT over requests that must keep it; 0 = the mean, as always with --batch.",
        minimum=0,
        maximum=99.99,
    )
    slo_ttft: str = option("", help="Mean TTFT to keep.", unit="duration", default_text="none")
    dtype: DType | None = option(None, help="Type of weights and KV cache.", default_text="as published")
    load: LoadOptions
    routing: RoutingOptions
    space: SpaceOptions
    json: bool = option(False, help="Print JSON, for programs.")
    picture: Path | None = option(None, help="SVG file for a map of all numbers of instances.", default_text="none")

    def __post_init__(self) -> None:
        check_ranges(self)
        if 0 < self.percentile < 50:
            raise ConfigError("--percentile", f"is {self.percentile:g}", "give 50 up to 99.99, or 0 for the mean")
