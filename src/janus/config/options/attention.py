"""The options of an attention-server."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from janus.config.fields import option
from janus.config.options.common import ServiceOptions
from janus.config.options.shared import COMPUTE, MAX_THREADS, ComputeOptions, DispatchOptions
from janus.errors import ConfigError
from janus.messages.control import Role

#: What --kv-cache takes at most when it is not given.
MAX_DEFAULT_KV_CACHE_BYTES = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionOptions(ComputeOptions, DispatchOptions, ServiceOptions):
    """``janus-attention-server``: attention layers, router, KV cache, requests."""

    SERVICE: ClassVar[Role] = "attention"

    model: Path = option(help="Model directory in Hugging Face format.", panel=COMPUTE)
    threads: int = option(
        0,
        help="CPU threads of the model.",
        unit="threads",
        default_text="0 = all cores",
        minimum=0,
        maximum=MAX_THREADS,
        panel=COMPUTE,
    )
    experts: Literal["remote", "local"] = option(
        "remote", help="remote: on expert-servers; local: in this process (monolithic).", panel=COMPUTE
    )
    max_running: int = option(
        64, help="Sequences that may be generated at the same time.", unit="sequences", minimum=1, maximum=1 << 16
    )
    token_budget: int = option(
        512,
        help="Tokens in one step; longer prompts are prefilled in chunks.",
        unit="tokens",
        minimum=1,
        maximum=1 << 20,
    )
    kv_cache_bytes: int = option(
        0,
        help="Memory for the KV cache.",
        unit="bytes",
        default_text="0 = room for --max-running of the longest sequences, at most 1GiB",
        minimum=0,
    )
    kv_blocks: int = option(
        0, help="Blocks in the KV cache, instead of --kv-cache.", unit="blocks", default_text="0 = by size", minimum=0
    )
    block_size: int = option(16, help="Tokens in one KV block.", unit="tokens", minimum=1, maximum=1024)
    max_model_len: int = option(
        0, help="Longest prompt plus output.", unit="tokens", default_text="0 = the model's limit", minimum=0
    )
    dispatch_timeout_s: float = option(
        5.0, help="How long experts may take for one layer before they count as lost.", unit="seconds", minimum=0.001
    )
    routing_sample_rate: int = option(
        64,
        help="Tokens whose experts are reported to the controller, which places replicas by them.",
        unit="tokens/s",
        default_text="64; 0 = none",
        minimum=0,
        maximum=65536,
    )
    recovery_timeout_s: float = option(
        10.0,
        help="How long requests wait for lost experts to come back before they are refused (503).",
        unit="seconds",
        minimum=0,
    )

    def __post_init__(self) -> None:
        ServiceOptions.__post_init__(self)  # super() has no class cell under slots=True
        if self.token_budget < self.max_running:
            raise ConfigError(
                "--token-budget",
                f"{self.token_budget} is less than --max-running {self.max_running}",
                "every running sequence needs one token per step; raise it or lower --max-running",
            )
