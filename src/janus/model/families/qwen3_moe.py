"""Qwen3-MoE (``Qwen3MoeForCausalLM``): grouped-query attention with per-head query/key norms, softmax top-k routing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from janus.errors import CheckpointError
from janus.model.config import ModelConfig
from janus.model.families.base import AttentionSpec, FusedExpertsSpec, MlpSpec, ModelSpec, TensorSpec
from janus.model.families.reader import ConfigReader
from janus.model.rope_parameters import RopeParameters

MODEL_TYPE = "qwen3_moe"

_GENERATION_KEYS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


class Qwen3MoeFamily:
    """Config keys as transformers 4 (``num_experts``) and 5 (``num_local_experts``) write them."""

    def parse_config(self, raw: Mapping[str, Any], generation: Mapping[str, Any], where: str) -> ModelConfig:
        """See ``Family.parse_config``; defaults are those of transformers' ``Qwen3MoeConfig``."""
        read = ConfigReader(raw, where)
        _refuse_unsupported(read)
        hidden_size, num_heads = read.integer("hidden_size"), read.integer("num_attention_heads")
        config = ModelConfig(
            family=MODEL_TYPE,
            vocab_size=read.integer("vocab_size"),
            hidden_size=hidden_size,
            num_layers=read.integer("num_hidden_layers"),
            num_heads=num_heads,
            num_kv_heads=read.integer("num_key_value_heads", default=num_heads),
            head_dim=read.integer("head_dim", default=max(1, hidden_size // num_heads)),
            max_position_embeddings=read.integer("max_position_embeddings", default=32_768),
            rope=RopeParameters.parse(raw, where),
            rms_norm_eps=read.number("rms_norm_eps", default=1e-6),
            attention_bias=read.flag("attention_bias"),
            tie_word_embeddings=read.flag("tie_word_embeddings"),
            num_experts=read.integer("num_experts", "num_local_experts", default=128),
            top_k=read.integer("num_experts_per_tok", default=8),
            norm_topk_prob=read.flag("norm_topk_prob"),
            moe_intermediate_size=read.integer("moe_intermediate_size", default=768),
            intermediate_size=read.integer("intermediate_size", default=6_144),
            moe_layers=_moe_layers(read),
            eos_token_ids=tuple(
                dict.fromkeys(
                    (
                        *ConfigReader(generation, "generation_config.json").integers("eos_token_id"),
                        *read.integers("eos_token_id"),
                    )
                )
            ),
            bos_token_id=next(iter(read.integers("bos_token_id")), None),
            torch_dtype=str(raw.get("dtype") or raw.get("torch_dtype") or "bfloat16"),
            generation_defaults={
                key: float(generation[key]) for key in _GENERATION_KEYS if isinstance(generation.get(key), int | float)
            },
        )
        _check_consistency(config, where)
        return config

    def to_json(self, config: ModelConfig) -> dict[str, Any]:
        """See ``Family.to_json``. Reads in transformers 4 and 5."""
        return {
            "architectures": ["Qwen3MoeForCausalLM"],
            "model_type": MODEL_TYPE,
            "vocab_size": config.vocab_size,
            "hidden_size": config.hidden_size,
            "num_hidden_layers": config.num_layers,
            "num_attention_heads": config.num_heads,
            "num_key_value_heads": config.num_kv_heads,
            "head_dim": config.head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": config.max_position_embeddings,
            "rope_theta": config.rope.theta,
            "rope_parameters": config.rope.to_json(),
            "rms_norm_eps": config.rms_norm_eps,
            "attention_bias": config.attention_bias,
            "tie_word_embeddings": config.tie_word_embeddings,
            "num_experts": config.num_experts,
            "num_experts_per_tok": config.top_k,
            "norm_topk_prob": config.norm_topk_prob,
            "moe_intermediate_size": config.moe_intermediate_size,
            "intermediate_size": config.intermediate_size,
            "decoder_sparse_step": 1,
            "mlp_only_layers": list(config.dense_layers),
            "eos_token_id": list(config.eos_token_ids) or None,
            "bos_token_id": config.bos_token_id,
            "use_sliding_window": False,
            "torch_dtype": config.torch_dtype,
        }

    def model(self, config: ModelConfig) -> ModelSpec:
        """See ``Family.model``."""
        table = (config.vocab_size, config.hidden_size)
        return ModelSpec(
            embedding=TensorSpec("model.embed_tokens.weight", table),
            final_norm=TensorSpec("model.norm.weight", (config.hidden_size,)),
            lm_head=None if config.tie_word_embeddings else TensorSpec("lm_head.weight", table),
        )

    def attention(self, config: ModelConfig, layer: int) -> AttentionSpec:
        """See ``Family.attention``."""
        hidden, head = config.hidden_size, config.head_dim
        q_rows, kv_rows = config.num_heads * head, config.num_kv_heads * head
        prefix = f"model.layers.{layer}"

        def tensor(name: str, *shape: int) -> TensorSpec:
            return TensorSpec(f"{prefix}.{name}", shape)

        def bias(name: str, rows: int) -> TensorSpec | None:
            return tensor(f"self_attn.{name}_proj.bias", rows) if config.attention_bias else None

        return AttentionSpec(
            input_norm=tensor("input_layernorm.weight", hidden),
            post_attention_norm=tensor("post_attention_layernorm.weight", hidden),
            q=tensor("self_attn.q_proj.weight", q_rows, hidden),
            k=tensor("self_attn.k_proj.weight", kv_rows, hidden),
            v=tensor("self_attn.v_proj.weight", kv_rows, hidden),
            o=tensor("self_attn.o_proj.weight", hidden, q_rows),
            q_norm=tensor("self_attn.q_norm.weight", head),
            k_norm=tensor("self_attn.k_norm.weight", head),
            q_bias=bias("q", q_rows),
            k_bias=bias("k", kv_rows),
            v_bias=bias("v", kv_rows),
            o_bias=bias("o", hidden),
        )

    def dense_mlp(self, config: ModelConfig, layer: int) -> MlpSpec:
        """See ``Family.dense_mlp``."""
        return _mlp(f"model.layers.{layer}.mlp", config.hidden_size, config.intermediate_size)

    def router(self, config: ModelConfig, layer: int) -> TensorSpec:
        """See ``Family.router``."""
        return TensorSpec(f"model.layers.{layer}.mlp.gate.weight", (config.num_experts, config.hidden_size))

    def expert(self, config: ModelConfig, layer: int, expert: int) -> MlpSpec:
        """See ``Family.expert``."""
        prefix = f"model.layers.{layer}.mlp.experts.{expert}"
        return _mlp(prefix, config.hidden_size, config.moe_intermediate_size)

    def fused_experts(self, config: ModelConfig, layer: int) -> FusedExpertsSpec:
        """See ``Family.fused_experts``: the names that the modules of transformers 5 have in memory."""
        prefix = f"model.layers.{layer}.mlp.experts"
        experts, hidden, width = config.num_experts, config.hidden_size, config.moe_intermediate_size
        return FusedExpertsSpec(
            gate_up=TensorSpec(f"{prefix}.gate_up_proj", (experts, 2 * width, hidden)),
            down=TensorSpec(f"{prefix}.down_proj", (experts, hidden, width)),
        )


def _mlp(prefix: str, hidden: int, width: int) -> MlpSpec:
    return MlpSpec(
        gate=TensorSpec(f"{prefix}.gate_proj.weight", (width, hidden)),
        up=TensorSpec(f"{prefix}.up_proj.weight", (width, hidden)),
        down=TensorSpec(f"{prefix}.down_proj.weight", (hidden, width)),
    )


def _refuse_unsupported(read: ConfigReader) -> None:
    if read.raw.get("hidden_act", "silu") != "silu":
        raise read.refuse("hidden_act", "", "silu")
    if read.raw.get("use_sliding_window"):
        raise read.refuse("use_sliding_window", "", "false (full attention)")
    if read.raw.get("quantization_config"):
        raise read.refuse("quantization_config", "", "float32, float16 and bfloat16 checkpoints")


def _moe_layers(read: ConfigReader) -> tuple[int, ...]:
    """A layer has experts unless listed in ``mlp_only_layers`` or off the beat of ``decoder_sparse_step``."""
    dense, step = set(read.integers("mlp_only_layers")), read.integer("decoder_sparse_step", default=1)
    layers = range(read.integer("num_hidden_layers"))
    moe_layers = tuple(layer for layer in layers if layer not in dense and (layer + 1) % step == 0)
    if not moe_layers:
        raise CheckpointError(read.where, "no layer has experts (mlp_only_layers, decoder_sparse_step)")
    return moe_layers


def _check_consistency(config: ModelConfig, where: str) -> None:
    if config.num_heads % config.num_kv_heads:
        raise CheckpointError(
            where, f"num_attention_heads {config.num_heads} is no multiple of num_key_value_heads {config.num_kv_heads}"
        )
    if config.head_dim % 2:
        raise CheckpointError(where, f"head_dim {config.head_dim} is odd, rotary embedding needs pairs")
    if config.top_k > config.num_experts:
        raise CheckpointError(where, f"num_experts_per_tok {config.top_k} exceeds num_experts {config.num_experts}")
