"""The model directory, and whether it fits."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from janus.cluster.checks.finding import Finding, ok, problem, warning
from janus.config.fields import option_fields
from janus.config.options import MAX_DEFAULT_KV_CACHE_BYTES, AttentionOptions
from janus.errors import CheckpointError

if TYPE_CHECKING:
    from janus.model.config import ModelConfig

_MAX_RUNNING = next(int(item.default) for item in option_fields(AttentionOptions) if item.name == "max_running")
_DTYPE_BYTES = {"float32": 4, "bfloat16": 2}
#: Resident size of an instance without weights and KV cache: interpreter, torch, UCX.
_BASE_BYTES = {"attention": 400 << 20, "expert": 400 << 20, "gateway": 150 << 20, "controller": 120 << 20}


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryEstimate:
    """Bytes that a cluster needs on one machine."""

    attention_weights: int
    expert_weights: int
    kv_cache: int
    processes: int

    @property
    def total(self) -> int:
        return self.attention_weights + self.expert_weights + self.kv_cache + self.processes


def check_model(path: Path, *, dtype: str, attention: int, experts: int) -> Iterator[Finding]:
    """Config, tensors, split and memory of the model in ``path``. Nothing but headers is read."""
    from janus.model.checkpoint import Checkpoint
    from janus.model.config import ModelConfig

    try:
        config = ModelConfig.load(path)
    except CheckpointError as error:
        yield problem("model config", f"{error.where}: {error.problem}", error.remedy)
        return
    shape = f"{config.num_layers} layers, {config.num_moe_layers} with {config.num_experts} experts, top-{config.top_k}"
    yield ok("model config", f"{config.family}: {shape}")
    try:
        Checkpoint.open(path, config).close()
        yield ok("model weights", "every tensor is there, with the right shape")
    except CheckpointError as error:
        yield problem("model weights", f"{error.where}: {error.problem}", error.remedy)
    if not (path / "tokenizer.json").is_file():
        yield problem("tokenizer", f"{path / 'tokenizer.json'}: no such file", "copy it from where the model is from")
    if experts > config.num_experts:
        yield problem(
            "experts", f"{experts} instances for {config.num_experts} experts", f"use --experts {config.num_experts}"
        )
    if dtype == "bfloat16" and not cpu_has_bfloat16():
        yield warning("dtype", "this CPU has no bfloat16 instructions", "use --dtype float32, which is faster here")
    kv_token = config.kv_layout.bytes_per_token(_DTYPE_BYTES[dtype])
    kind = "latent" if config.latent is not None else "grouped-query"
    yield ok("KV cache", f"{kind} attention keeps {kv_token} bytes per token in {dtype}")
    needed = estimate_memory(config, dtype=dtype, attention=attention, experts=experts)
    yield check_memory(needed, psutil.virtual_memory().available)


def estimate_memory(config: ModelConfig, *, dtype: str, attention: int, experts: int) -> MemoryEstimate:
    """What ``attention`` and ``experts`` instances of ``config`` need: weights by shape, the KV caches, the processes.

    Every attention instance holds all of the attention half; the experts are held once, over all expert instances.
    """
    from janus.model.families import family_named
    from janus.model.families.base import attention_tensors, tensors_in

    size, family = _DTYPE_BYTES[dtype], family_named(config.family)
    layers = (spec for layer in range(config.num_layers) for spec in attention_tensors(family, config, layer))
    attention_half = sum(math.prod(spec.shape) for spec in (*tensors_in(family.model(config)), *layers))
    expert_half = config.expert_parameters * config.num_experts * config.num_moe_layers
    kv_token = config.kv_layout.bytes_per_token(size)
    kv_cache = min(MAX_DEFAULT_KV_CACHE_BYTES, _MAX_RUNNING * config.max_position_embeddings * kv_token)
    processes = attention * _BASE_BYTES["attention"] + experts * _BASE_BYTES["expert"]
    return MemoryEstimate(
        attention_weights=attention * size * attention_half,
        expert_weights=size * expert_half,
        kv_cache=attention * kv_cache,
        processes=processes + _BASE_BYTES["gateway"] + _BASE_BYTES["controller"],
    )


def check_memory(needed: MemoryEstimate, available: int) -> Finding:
    """The estimate against what is free."""
    detail = (
        f"about {_gib(needed.total)} needed (weights {_gib(needed.attention_weights + needed.expert_weights)}, "
        f"KV cache {_gib(needed.kv_cache)}, processes {_gib(needed.processes)}), {_gib(available)} free"
    )
    if needed.total > available:
        return problem("memory", detail, "use --dtype bfloat16, fewer attention instances, or a smaller --kv-cache")
    return ok("memory", detail)


def cpu_has_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the CPU multiplies bfloat16 in hardware; True where that cannot be told."""
    try:
        text = cpuinfo.read_text()
    except OSError:
        return True
    return any(word in text for word in ("amx_bf16", "avx512_bf16", " bf16"))


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
