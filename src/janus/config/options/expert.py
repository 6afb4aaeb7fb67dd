"""The options of an expert-server."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, TypeAlias

from janus.config.fields import option
from janus.config.options.common import ServiceOptions
from janus.config.options.shared import COMPUTE, MAX_THREADS, ComputeOptions
from janus.messages.control import Role

LoadSource: TypeAlias = Literal["auto", "disk", "peer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertOptions(ComputeOptions, ServiceOptions):
    """``janus-expert-server``: experts, and nothing else."""

    SERVICE: ClassVar[Role] = "expert"

    model: Path = option(
        help="Model directory in Hugging Face format; only this instance's experts are read.", panel=COMPUTE
    )
    threads: int = option(
        0,
        help="CPU threads of the experts.",
        unit="threads",
        default_text="0 = all cores",
        minimum=0,
        maximum=MAX_THREADS,
        panel=COMPUTE,
    )
    slots: int = option(
        0,
        help="Experts that this instance can hold per MoE layer.",
        unit="slots",
        default_text="0 = an even share, chosen by the controller",
        minimum=0,
    )
    speed: float = option(
        1.0,
        help="How fast this instance is beside others: one of 2 is given twice as many experts to activate.",
        unit="factor",
        minimum=0.01,
        panel=COMPUTE,
    )
    load_source: LoadSource = option(
        "auto",
        help="Where replicas are loaded from while the cluster serves. disk: the model directory; peer: another expert "
        "instance that has them, else the model directory; auto: whichever has been faster.",
    )
    load_rate_bytes: int = option(
        0,
        help="Bytes per second that replicas are loaded at, and sent to other instances at.",
        unit="bytes/s",
        default_text="0 = no limit",
        minimum=0,
    )
