"""Qwen3-MoE (``Qwen3MoeForCausalLM``): grouped-query attention with per-head query/key norms, softmax top-k routing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from janus.model.config import ModelConfig
from janus.model.families.common import sparse_layers
from janus.model.families.decoder import DecoderFamily
from janus.model.families.reader import ConfigReader


class Qwen3MoeFamily(DecoderFamily):
    """Config keys as transformers 4 (``num_experts``) and 5 (``num_local_experts``) write them."""

    model_type = "qwen3_moe"
    architecture = "Qwen3MoeForCausalLM"
    defaults: ClassVar = {
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
        "intermediate_size": 6_144,
    }

    quantisations = ("fp8",)

    def refine(self, config: ModelConfig, read: ConfigReader) -> ModelConfig:
        """See ``DecoderFamily.refine``."""
        if read.raw.get("use_sliding_window"):
            raise read.refuse("use_sliding_window", "", "false (full attention)")
        return replace(config, qk_norm=True, moe_layers=sparse_layers(read))

    def own_json(self, config: ModelConfig) -> dict[str, Any]:
        """See ``DecoderFamily.own_json``."""
        return {
            "decoder_sparse_step": 1,
            "mlp_only_layers": list(config.dense_layers),
            "use_sliding_window": False,
        }
