"""``ModelConfig``: the shape of a model, parsed once from a Hugging Face ``config.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from janus.errors import CheckpointError
from janus.model.attention.shape import KVLayout, LatentShape
from janus.model.rope_parameters import RopeParameters


@dataclass(frozen=True, slots=True, kw_only=True)
class GateConfig:
    """How a row's experts are chosen, and what their outputs are multiplied by; ``model/gate.py`` does it."""

    #: What makes scores of the router's logits.
    score: Literal["softmax", "sigmoid"] = "softmax"
    #: Divide the weights of the chosen experts by their sum.
    normalise: bool = True
    #: Factor on the weights.
    scaling: float = 1.0
    #: Experts are numbered through ``groups`` groups of one size, and chosen in the ``top_groups`` best groups alone.
    groups: int = 1
    top_groups: int = 1
    #: Of how many of its best experts the scores are added up to rank a group: 1 (DeepSeek-V2) or 2 (DeepSeek-V3).
    group_best: Literal[1, 2] = 1
    #: The checkpoint has a bias on the logits; or one on the scores, which counts for the choice and not the weights.
    logit_bias: bool = False
    correction_bias: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ClampedSwiglu:
    """``(clip(up, -limit, limit) + 1) * g * sigmoid(alpha * g)`` with ``g = min(gate, limit)``, as gpt-oss has it."""

    alpha: float = 1.702
    limit: float = 7.0


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything that the math, the KV cache and the placement need to know of a model. Sizes are element counts."""

    family: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    rope: RopeParameters
    rms_norm_eps: float
    attention_bias: bool
    tie_word_embeddings: bool
    num_experts: int
    top_k: int
    gate: GateConfig
    #: Width of one expert's hidden layer.
    moe_intermediate_size: int
    #: Width of the MLP of a layer without experts.
    intermediate_size: int
    #: ``moe_layers[i]`` is the index, among all layers, of the i-th MoE layer.
    moe_layers: tuple[int, ...]
    #: Width of the expert of a MoE layer that every row goes through, on the attention side; 0 where there is none.
    shared_intermediate_size: int = 0
    #: Whether the shared expert's output is multiplied by the sigmoid of a product of its input.
    shared_expert_gate: bool = False
    #: Whether the experts' two products have biases.
    expert_bias: bool = False
    #: What is between an expert's two products; None is ``silu(gate) * up``.
    swiglu: ClampedSwiglu | None = None
    #: Whether the experts' products are stored in MXFP4; see ``model/mxfp4.py``.
    mxfp4: bool = False
    #: Whether queries and keys are normed.
    qk_norm: bool = False
    #: Ids that end a generation, from ``generation_config.json`` and ``config.json``.
    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None
    #: Latent attention; None is grouped-query attention.
    latent: LatentShape | None = None
    #: By layer: how many tokens, its own included, a row sees; None sees all. Empty: every layer sees all.
    sliding_windows: tuple[int | None, ...] = ()
    #: Whether every head has a logit that takes part in the softmax and carries no value.
    attention_sinks: bool = False
    #: Queries, keys and values are clamped to [-qkv_clip, qkv_clip].
    qkv_clip: float | None = None
    #: Rows and columns that share a scale, in a checkpoint with FP8 weights.
    fp8_block: tuple[int, int] | None = None
    #: The dtype that the checkpoint says it was saved in.
    torch_dtype: str = "bfloat16"
    #: Sampling defaults of ``generation_config.json``; a client's request overrides them.
    generation_defaults: Mapping[str, float] = field(default_factory=dict, hash=False)

    @property
    def num_moe_layers(self) -> int:
        """How many layers have experts."""
        return len(self.moe_layers)

    @property
    def expert_parameters(self) -> int:
        """Elements of the weights (and biases) of one expert."""
        biases = 2 * self.moe_intermediate_size + self.hidden_size if self.expert_bias else 0
        return 3 * self.hidden_size * self.moe_intermediate_size + biases

    @cached_property
    def dense_layers(self) -> tuple[int, ...]:
        """Indices of the layers whose MLP is dense (it runs on the attention side)."""
        return tuple(layer for layer in range(self.num_layers) if layer not in self.moe_index)

    @cached_property
    def moe_index(self) -> Mapping[int, int]:
        """Layer index -> MoE-layer index; dense layers are absent. The inverse of ``moe_layers``."""
        return {layer: index for index, layer in enumerate(self.moe_layers)}

    @property
    def rope_theta(self) -> float:
        """Base of the rotary frequencies."""
        return self.rope.theta

    @property
    def rotary_dim(self) -> int:
        """How many elements of a head turn with the position: the first ones, or latent attention's part for it."""
        if self.latent is not None:
            return self.latent.qk_rope_head_dim
        return int(self.head_dim * self.rope.partial_rotary_factor)

    @property
    def attention_scale(self) -> float:
        """What scores are multiplied by before the softmax."""
        if self.latent is None:
            return float(self.head_dim**-0.5)
        return float(self.latent.qk_head_dim**-0.5) * self.rope.score_scale

    @cached_property
    def kv_layout(self) -> KVLayout:
        """What the KV cache holds."""
        if self.latent is not None:
            return KVLayout(num_layers=self.num_layers, parts=((1, self.latent.width),))
        return KVLayout(num_layers=self.num_layers, parts=((self.num_kv_heads, self.head_dim),) * 2)

    def sliding_window(self, layer: int) -> int | None:
        """How many tokens a row of ``layer`` sees; None is all."""
        return self.sliding_windows[layer] if self.sliding_windows else None

    @classmethod
    def load(cls, path: str | Path) -> ModelConfig:
        """Parse ``path/config.json`` (and ``generation_config.json`` where there is one).

        Raises:
            CheckpointError: no such file, not JSON, an unsupported family or feature, or a value out of range.
        """
        from janus.model.families import family_of

        directory = Path(path)
        if not directory.is_dir():
            raise CheckpointError(str(directory), "no such model directory", "pass a directory with a config.json")
        raw = read_json(directory / "config.json")
        generation_path = directory / "generation_config.json"
        generation = read_json(generation_path) if generation_path.exists() else {}
        return family_of(raw, str(directory / "config.json")).parse_config(
            raw, generation, str(directory / "config.json")
        )


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in ``path``. Raises CheckpointError if it is missing or is not a JSON object."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(str(path), "no such file", "pass a model directory in Hugging Face layout") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(str(path), f"cannot be read as JSON: {error}") from error
    if not isinstance(raw, dict):
        raise CheckpointError(str(path), "is not a JSON object")
    return raw
