"""The options of the placement-controller."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from janus.config.fields import option
from janus.config.options.common import ServiceOptions
from janus.config.options.shared import COMPUTE, PROCESS, PlacementOptions
from janus.config.scaling import ScalingOptions
from janus.errors import ConfigError
from janus.messages.control import Role


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerOptions(PlacementOptions, ServiceOptions):
    """``janus-placement-controller``: registry and placement, never on the token path."""

    SERVICE: ClassVar[Role] = "controller"
    #: It is the controller; there is none to connect to.
    HIDDEN: ClassVar[frozenset[str]] = frozenset({"controller"})

    model: Path = option(help="Model directory in Hugging Face format; only config.json is read.", panel=COMPUTE)
    expect_attention: int = option(
        1, help="Attention instances to wait for, and to name when missing.", unit="instances", minimum=0
    )
    expect_experts: int = option(
        1, help="Expert instances to wait for before the first placement.", unit="instances", minimum=0
    )
    expect_gateways: int = option(
        1, help="Gateways to wait for, and to name when missing.", unit="instances", minimum=0
    )
    rebalance_s: float = option(
        30.0,
        help="How often the placement is compared with the best one for what the router chose lately.",
        unit="seconds",
        default_text="30; 0 = never",
        minimum=0,
        panel=COMPUTE,
    )
    rebalance_gain: float = option(
        0.03,
        help="Replicas are moved when a_max, the experts that the busiest instance activates, falls by this share.",
        unit="share",
        minimum=0,
        maximum=1,
        panel=COMPUTE,
    )
    activations_horizon_s: float = option(
        60.0,
        help="How far what the router chose lately reaches back, at least; the shorter, the sooner a new text counts.",
        unit="seconds",
        minimum=1,
        panel=COMPUTE,
    )
    state_dir: str = option(
        "",
        help="Directory in which what the router chose lately is kept, so that a restart begins with it.",
        default_text="none = kept in memory only",
        panel=PROCESS,
    )
    activations_max_age_s: float = option(
        0.0,
        help="Begin without what an earlier controller kept if it is older than this.",
        unit="seconds",
        default_text="0 = however old",
        minimum=0,
        panel=PROCESS,
    )
    heartbeat_s: float = option(
        0.5, help="How often instances report; eight missed reports mark one as failed.", unit="seconds", minimum=0.01
    )
    scaling: ScalingOptions = field(default_factory=ScalingOptions)
    control_socket: str = option(
        "",
        help="Control socket of the janus up that runs the cluster: instances are added and removed through it.",
        unit="path",
        default_text="none; janus up gives its own",
        panel=PROCESS,
    )

    def __post_init__(self) -> None:
        ServiceOptions.__post_init__(self)  # super() has no class cell under slots=True
        if self.scaling.autoscale == "on" and not (self.control_socket or self.scaling.scale_command):
            raise ConfigError(
                "--autoscale",
                "there is nothing to add and remove instances with",
                "give --scale-command, run the cluster with janus up, or use --autoscale dry-run",
            )
