"""The options of the autoscaler: those of ``janus up``, and of a placement-controller that runs without it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from janus.config.fields import check_ranges, option
from janus.errors import ConfigError

AutoscaleMode: TypeAlias = Literal["off", "dry-run", "on"]
_SCALING = "Autoscaler"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingOptions:
    """How the numbers of attention and expert instances follow the load; docs/planning.md says how."""

    autoscale: AutoscaleMode = option(
        "off",
        help="Let the numbers of attention and expert instances follow the load. dry-run: decide and say so, change "
        "nothing.",
        panel=_SCALING,
    )
    slo_tpot_s: float = option(
        0.0,
        help="TPOT that clients should see, as 150ms or 0.15.",
        unit="seconds",
        default_text="required with --autoscale",
        minimum=0,
        panel=_SCALING,
    )
    slo_percentile: float = option(
        99.0,
        help="Share of the requests that should see it, in percent; 0 = the mean of all.",
        unit="percent",
        minimum=0,
        maximum=99.99,
        panel=_SCALING,
    )
    slo_ttft_s: float = option(
        0.0,
        help="TTFT that clients should see.",
        unit="seconds",
        default_text="0 = no such SLO",
        minimum=0,
        panel=_SCALING,
    )
    min_attention: int = option(1, help="Attention instances at least.", unit="instances", minimum=1, panel=_SCALING)
    max_attention: int = option(8, help="Attention instances at most.", unit="instances", minimum=1, panel=_SCALING)
    min_experts: int = option(
        1,
        help="Expert instances at least; never fewer than hold every expert.",
        unit="instances",
        minimum=1,
        panel=_SCALING,
    )
    max_experts: int = option(8, help="Expert instances at most.", unit="instances", minimum=1, panel=_SCALING)
    min_replicas: int = option(
        0,
        help="Replicas that every expert keeps.",
        unit="replicas",
        default_text="0 = as many as it has when the controller starts, at most 2",
        minimum=0,
        panel=_SCALING,
    )
    scale_interval_s: float = option(
        60.0,
        help="Between two decisions, where nothing is urgent.",
        unit="seconds",
        minimum=1,
        maximum=86400,
        panel=_SCALING,
    )
    scale_look_back_s: float = option(
        300.0,
        help="Instances are taken away when fewer would have been enough for so long.",
        unit="seconds",
        minimum=1,
        maximum=604800,
        panel=_SCALING,
    )
    scale_headroom: float = option(
        0.2,
        help="Share of more load than there is that should be borne within the SLO.",
        unit="share",
        minimum=0,
        maximum=10,
        panel=_SCALING,
    )
    scale_command: str = option(
        "",
        help="Command that brings the cluster to {attention} and {experts} instances, where janus up does not run it: "
        "docker compose, kubectl, a Ray script. Not run by a shell.",
        default_text="none",
        panel=_SCALING,
    )
    scale_timeout_s: float = option(
        300.0,
        help="How long one instance may take to join or to leave.",
        unit="seconds",
        minimum=1,
        panel=_SCALING,
    )
    hardware: str = option(
        "",
        help="Hardware profile that steps are predicted by: its name, or a file of janus profile. It is corrected by "
        "what clients see.",
        unit="profile",
        default_text="none: learned from what clients see",
        panel=_SCALING,
    )

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.autoscale != "off" and not self.slo_tpot_s:
            raise ConfigError("--slo-tpot", "is not given", "give the TPOT to hold, e.g. --slo-tpot 150ms")
        for role in ("attention", "experts"):
            low, high = getattr(self, f"min_{role}"), getattr(self, f"max_{role}")
            if low > high:
                raise ConfigError(f"--max-{role}", f"{high} is below --min-{role} {low}", f"use at least {low}")
        if self.scale_look_back_s < self.scale_interval_s:
            problem = f"{self.scale_look_back_s:g} s is shorter than the interval of {self.scale_interval_s:g} s"
            raise ConfigError("--scale-look-back", problem, "use at least --scale-interval")
        for name in ("{attention}", "{experts}") if self.scale_command else ():
            if name not in self.scale_command:
                raise ConfigError("--scale-command", f"says nothing of {name}", "write it where the number belongs")
