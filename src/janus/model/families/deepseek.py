"""What DeepSeek-V2 and V3 share: latent attention, experts after a few dense layers, shared experts, FP8 weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from janus.model.attention.shape import LatentShape
from janus.model.config import ModelConfig
from janus.model.families.base import LatentAttentionSpec, TensorSpec
from janus.model.families.common import layers_after_dense
from janus.model.families.decoder import DecoderFamily
from janus.model.families.reader import ConfigReader


class DeepseekFamily(DecoderFamily):
    """Config keys and tensor names of both. Layers past ``num_hidden_layers`` (further tokens) are not read."""

    quantisations: ClassVar = ("fp8",)

    def refine(self, config: ModelConfig, read: ConfigReader) -> ModelConfig:
        """See ``DecoderFamily.refine``."""
        if read.integer("moe_layer_freq", default=1) != 1:
            raise read.refuse("moe_layer_freq", "", "1 (experts in every layer after the dense ones)")
        latent = LatentShape(
            kv_lora_rank=read.integer("kv_lora_rank", default=512),
            q_lora_rank=_q_lora_rank(read),
            qk_nope_head_dim=read.integer("qk_nope_head_dim", default=128),
            qk_rope_head_dim=read.integer("qk_rope_head_dim", default=64),
            v_head_dim=read.integer("v_head_dim", default=128),
            rope_interleaved=read.flag("rope_interleave", default=True),
        )
        if latent.qk_rope_head_dim % 2:
            raise read.refuse("qk_rope_head_dim", ": rotary embedding needs pairs", "an even number")
        shared = read.integer("n_shared_experts", minimum=0)
        return replace(
            config,
            latent=latent,
            head_dim=latent.qk_head_dim,
            num_kv_heads=config.num_heads,
            moe_layers=layers_after_dense(read),
            shared_intermediate_size=shared * config.moe_intermediate_size,
        )

    def own_json(self, config: ModelConfig) -> dict[str, Any]:
        """See ``DecoderFamily.own_json``."""
        latent = config.latent
        assert latent is not None
        return {
            "head_dim": None,
            "num_experts": None,
            "n_routed_experts": config.num_experts,
            "n_shared_experts": config.shared_intermediate_size // config.moe_intermediate_size,
            "first_k_dense_replace": config.moe_layers[0],
            "routed_scaling_factor": config.gate.scaling,
            "kv_lora_rank": latent.kv_lora_rank,
            "qk_nope_head_dim": latent.qk_nope_head_dim,
            "qk_rope_head_dim": latent.qk_rope_head_dim,
            "v_head_dim": latent.v_head_dim,
            "rope_interleave": latent.rope_interleaved,
            "n_group": config.gate.groups,
            "topk_group": config.gate.top_groups,
        }

    def to_json(self, config: ModelConfig) -> dict[str, Any]:
        """See ``Family.to_json``. Null is a value of q_lora_rank, where ``own_json`` takes it for "not there"."""
        assert config.latent is not None
        return super().to_json(config) | {"q_lora_rank": config.latent.q_lora_rank}

    def attention(self, config: ModelConfig, layer: int) -> LatentAttentionSpec:  # type: ignore[override]
        """See ``Family.attention``; the other decoders' is grouped-query attention."""
        shape, heads, hidden = config.latent, config.num_heads, config.hidden_size
        assert shape is not None
        rank, q_rows = shape.q_lora_rank, heads * shape.qk_head_dim
        prefix = f"model.layers.{layer}"

        def tensor(name: str, *size: int) -> TensorSpec:
            return TensorSpec(f"{prefix}.{name}", size)

        def bias(name: str, rows: int) -> TensorSpec | None:
            return tensor(f"self_attn.{name}.bias", rows) if config.attention_bias else None

        return LatentAttentionSpec(
            input_norm=tensor("input_layernorm.weight", hidden),
            post_attention_norm=tensor("post_attention_layernorm.weight", hidden),
            q=tensor("self_attn.q_proj.weight", q_rows, hidden) if rank is None else None,
            q_a=None if rank is None else tensor("self_attn.q_a_proj.weight", rank, hidden),
            q_a_bias=None if rank is None else bias("q_a_proj", rank),
            q_a_norm=None if rank is None else tensor("self_attn.q_a_layernorm.weight", rank),
            q_b=None if rank is None else tensor("self_attn.q_b_proj.weight", q_rows, rank),
            kv_a=tensor("self_attn.kv_a_proj_with_mqa.weight", shape.width, hidden),
            kv_a_bias=bias("kv_a_proj_with_mqa", shape.width),
            kv_a_norm=tensor("self_attn.kv_a_layernorm.weight", shape.kv_lora_rank),
            kv_b=tensor(
                "self_attn.kv_b_proj.weight", heads * (shape.qk_nope_head_dim + shape.v_head_dim), shape.kv_lora_rank
            ),
            o=tensor("self_attn.o_proj.weight", hidden, heads * shape.v_head_dim),
            o_bias=bias("o_proj", hidden),
        )


def _q_lora_rank(read: ConfigReader) -> int | None:
    """Null says that queries are projected at once; a missing key is transformers' default."""
    if "q_lora_rank" in read.raw and read.raw["q_lora_rank"] is None:
        return None
    return read.integer("q_lora_rank", default=1_536)
