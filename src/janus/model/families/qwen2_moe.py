"""Qwen2-MoE (``Qwen2MoeForCausalLM``): biases on queries, keys and values, and a shared expert with a gate."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from janus.model.config import ModelConfig
from janus.model.families.common import sparse_layers
from janus.model.families.decoder import DecoderFamily
from janus.model.families.reader import ConfigReader


class Qwen2MoeFamily(DecoderFamily):
    """Qwen1.5-MoE and Qwen2-57B-A14B."""

    model_type = "qwen2_moe"
    architecture = "Qwen2MoeForCausalLM"
    defaults: ClassVar = {
        "num_experts": 60,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 1_408,
        "intermediate_size": 5_632,
        "shared_expert_intermediate_size": 5_632,
        "qkv_bias": True,
    }
    output_bias = False
    shared_module = "shared_expert"

    def refine(self, config: ModelConfig, read: ConfigReader) -> ModelConfig:
        """See ``DecoderFamily.refine``."""
        if read.raw.get("use_sliding_window"):
            raise read.refuse("use_sliding_window", "", "false (full attention)")
        return replace(
            config,
            attention_bias=read.flag("qkv_bias"),
            moe_layers=sparse_layers(read),
            shared_intermediate_size=read.integer("shared_expert_intermediate_size"),
            shared_expert_gate=True,
        )

    def own_json(self, config: ModelConfig) -> dict[str, Any]:
        """See ``DecoderFamily.own_json``."""
        return {
            "attention_bias": None,
            "qkv_bias": config.attention_bias,
            "decoder_sparse_step": 1,
            "mlp_only_layers": list(config.dense_layers),
            "shared_expert_intermediate_size": config.shared_intermediate_size,
            "use_sliding_window": False,
        }
