"""GLM-4.5 (``Glm4MoeForCausalLM``): sigmoid scores with a correction bias, a shared expert, half of a head rotated."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from janus.model.config import GateConfig, ModelConfig
from janus.model.families.common import layers_after_dense
from janus.model.families.decoder import DecoderFamily
from janus.model.families.reader import ConfigReader


class Glm4MoeFamily(DecoderFamily):
    """GLM-4.5, 4.6 and their Air variants; layers for multi-token prediction are left in the checkpoint."""

    model_type = "glm4_moe"
    architecture = "Glm4MoeForCausalLM"
    defaults: ClassVar = {
        "n_routed_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 1_408,
        "intermediate_size": 10_944,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
        "norm_topk_prob": True,
        "partial_rotary_factor": 0.5,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131_072,
    }
    output_bias = False

    def refine(self, config: ModelConfig, read: ConfigReader) -> ModelConfig:
        """See ``DecoderFamily.refine``."""
        gate = GateConfig(
            score="sigmoid",
            normalise=config.gate.normalise,
            scaling=read.number("routed_scaling_factor", default=1.0),
            groups=read.integer("n_group", default=1),
            top_groups=read.integer("topk_group", default=1),
            group_best=2,
            correction_bias=True,
        )
        return replace(
            config,
            gate=gate,
            moe_layers=layers_after_dense(read),
            shared_intermediate_size=read.integer("n_shared_experts") * config.moe_intermediate_size,
            qk_norm=read.flag("use_qk_norm"),
        )

    def own_json(self, config: ModelConfig) -> dict[str, Any]:
        """See ``DecoderFamily.own_json``."""
        return {
            "num_experts": None,
            "n_routed_experts": config.num_experts,
            "n_shared_experts": config.shared_intermediate_size // config.moe_intermediate_size,
            "routed_scaling_factor": config.gate.scaling,
            "n_group": config.gate.groups,
            "topk_group": config.gate.top_groups,
            "first_k_dense_replace": len(config.dense_layers),
            "use_qk_norm": config.qk_norm,
            "partial_rotary_factor": config.rope.partial_rotary_factor,
        }
