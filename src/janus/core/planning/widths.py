"""Bytes per parameter of published weights, quantised ones with their scales. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from janus.core.planning.config_keys import Keys
from janus.core.planning.sizes import ModelSizes
from janus.errors import ConfigError

#: Bytes of an element.
WIDTHS = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}
#: Four bits, and one exponent of eight per 32 of them (OCP Microscaling Formats 1.0, section 5.3).
_MXFP4 = (4 + 8 / 32) / 8
#: Bytes of a scale of block-wise FP8 (float32), and of one that nobody says the block of.
_FP8_SCALE = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Widths:
    """Bytes per parameter outside and inside the routed experts, per element of the KV cache, per activation."""

    weights: float
    experts: float
    kv: float
    activations: float

    @classmethod
    def same(cls, width: float) -> Widths:
        """Return ``width`` for everything."""
        return cls(weights=width, experts=width, kv=width, activations=width)


def widths_of(config: Mapping[str, Any], counts: ModelSizes, *, expert_biases: int = 0) -> Widths:
    """Return the widths of the weights that ``config`` was published with; means, where they are mixed.

    ``expert_biases``: parameters of an expert that are not in its matrices, which are never quantised.

    Raises:
        ConfigError: weights of a kind that is not known; names the key.
    """
    keys = Keys(config)
    dtype = keys.text("torch_dtype") or keys.text("dtype") or "bfloat16"
    if dtype not in WIDTHS:
        raise ConfigError("config.json: torch_dtype", f"{dtype!r} is not known", f"known are {', '.join(WIDTHS)}")
    plain = WIDTHS[dtype]
    quantised = keys.table("quantization_config")
    if not quantised:
        return Widths.same(plain)
    method = quantised.get("quant_method")
    if method == "fp8":
        width = _fp8(quantised)
        whole = counts.embedding_params + counts.head_params
        side = counts.attention_side_params
        # The tables stay as they are.
        weights = ((side - whole) * width + whole * plain) / side
        return Widths(weights=weights, experts=width, kv=plain, activations=plain)
    if method == "mxfp4":
        matrices = counts.expert_params - expert_biases
        experts = (matrices * _MXFP4 + expert_biases * plain) / counts.expert_params
        return Widths(weights=plain, experts=experts, kv=plain, activations=plain)
    raise ConfigError(
        "config.json: quantization_config.quant_method",
        f"{method!r} is not known",
        "known are fp8 and mxfp4; or give the type to serve in",
    )


def _fp8(quantised: Mapping[str, Any]) -> float:
    """Bytes per parameter: one, and its part of the scale of the block that it is in."""
    block = quantised.get("weight_block_size")
    if isinstance(block, list | tuple) and len(block) == 2 and all(isinstance(n, int) and n > 0 for n in block):
        rows, columns = block
        return 1 + _FP8_SCALE / float(rows * columns)
    return 1.0
