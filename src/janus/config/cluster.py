"""The options of ``janus up``, which starts every service of a cluster on this machine."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from janus.config.fields import check_ranges, option
from janus.config.options.common import check_host
from janus.config.options.shared import (
    COMPUTE,
    MAX_THREADS,
    ComputeOptions,
    DispatchOptions,
    PlacementOptions,
    ProcessOptions,
)
from janus.config.overrides import overrides
from janus.config.scaling import ScalingOptions
from janus.errors import ConfigError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_OPS = "Operation"


@dataclass(frozen=True, slots=True, kw_only=True)
class UpOptions(ProcessOptions, ComputeOptions, DispatchOptions, PlacementOptions):
    """Start a cluster on this machine: controller, gateway, attention- and expert-servers.

    Prints one line ``ready: URL`` on stdout when it serves. Ctrl-C stops it in order; a second one, by force.
    """

    SERVICE: ClassVar[str] = "up"

    model: Path = option(
        help="Model directory in Hugging Face format; janus models lists what is served.", panel=COMPUTE
    )
    attention: int = option(1, help="Attention instances (m).", unit="instances", minimum=1, maximum=256)
    experts: int = option(
        2, help="Expert instances (n); not used with --monolithic.", unit="instances", minimum=1, maximum=1024
    )
    gateways: int = option(
        1, help="Gateways; they share the HTTP endpoint's socket.", unit="instances", minimum=1, maximum=64
    )
    port: int = option(
        8000, help="Port of the HTTP endpoint.", unit="port", default_text="8000; 0 = any", minimum=0, maximum=65535
    )
    host: str = option("127.0.0.1", help="Address that the HTTP endpoint listens on; 0.0.0.0 for all.", unit="address")
    monolithic: bool = option(
        False, help="Run the experts inside the attention instances: the same engine without the exchange."
    )
    threads: int = option(
        0,
        help="CPU threads of each attention and expert instance.",
        unit="threads",
        default_text="0 = the cores, shared out",
        minimum=0,
        maximum=MAX_THREADS,
        panel=COMPUTE,
    )
    name: str = option("default", help="Name of the cluster, for status, down and chat.", panel=_OPS)
    restart: Literal["on-failure", "never"] = option(
        "on-failure", help="What to do about an instance that died while the cluster serves.", panel=_OPS
    )
    hung_after_s: float = option(
        5.0,
        help="An instance that the controller has given up, and whose process lives, is ended and restarted after "
        "this long; not with --restart never.",
        unit="seconds",
        default_text="5; 0 = never",
        minimum=0,
        panel=_OPS,
    )
    start_timeout_s: float = option(
        120.0, help="How long the cluster may take to become ready.", unit="seconds", minimum=1, panel=_OPS
    )
    preload: bool = option(
        True,
        help="Fork attention- and expert-servers from a process that has loaded torch: they start sooner and share "
        "its memory. Without, each starts from nothing.",
        panel=_OPS,
    )
    scaling: ScalingOptions = field(default_factory=ScalingOptions)
    set: tuple[str, ...] = option(
        (),
        help="An option of a role's servers, such as expert.load-rate=10MiB or attention.max-running=32; see "
        "janus-expert-server --help and its like. May be repeated.",
        unit="role.option=value",
        default_text="none",
        panel=_OPS,
    )
    verbose: bool = option(False, help="Show the instances' logs here too; they are always in files.", panel=_OPS)

    def __post_init__(self) -> None:
        check_ranges(self)
        overrides(self.set)
        check_host("--host", self.host)
        if not _NAME.fullmatch(self.name):
            raise ConfigError("--name", f"{self.name!r} cannot name a file", "use letters, digits, '.', '_' and '-'")
        if self.scaling.scale_command:
            problem = "janus up adds and removes instances itself"
            raise ConfigError("--scale-command", problem, "leave it out, or start the controller without janus up")
        for role in ("attention", "experts") if self.scaling.autoscale != "off" else ():
            start, most = getattr(self, role), getattr(self.scaling, f"max_{role}")
            if start > most and not (role == "experts" and self.monolithic):
                problem = f"{most} is below the {start} that --{role} starts with"
                raise ConfigError(f"--max-{role}", problem, f"use at least {start}, or start with fewer")
