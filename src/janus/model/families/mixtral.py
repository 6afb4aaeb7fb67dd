"""Mixtral (``MixtralForCausalLM``): plain grouped-query attention, experts under names of their own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from janus.model.config import GateConfig, ModelConfig
from janus.model.families.decoder import DecoderFamily
from janus.model.families.reader import ConfigReader


class MixtralFamily(DecoderFamily):
    """``intermediate_size`` is the width of an expert; every layer has experts; weights are always normalised."""

    model_type = "mixtral"
    architecture = "MixtralForCausalLM"
    defaults: ClassVar = {
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "rope_theta": 1e6,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131_072,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    experts_module = "block_sparse_moe"
    expert_names = ("w1", "w3", "w2")

    def refine(self, config: ModelConfig, read: ConfigReader) -> ModelConfig:
        """See ``DecoderFamily.refine``."""
        window = read.integer("sliding_window", default=0, minimum=0)
        return replace(
            config,
            gate=GateConfig(normalise=True),
            moe_intermediate_size=config.intermediate_size,
            sliding_windows=(window,) * config.num_layers if window else (),
        )

    def own_json(self, config: ModelConfig) -> dict[str, Any]:
        """See ``DecoderFamily.own_json``."""
        return {
            "num_experts": None,
            "num_local_experts": config.num_experts,
            "norm_topk_prob": None,
            "moe_intermediate_size": None,
            "intermediate_size": config.moe_intermediate_size,
            "sliding_window": config.sliding_window(0),
            "attention_bias": None,
        }
