"""DeepSeek-V3 and R1 (``DeepseekV3ForCausalLM``): latent attention, sigmoid routing with a bias that balances load."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from janus.model.config import GateConfig, ModelConfig
from janus.model.families.deepseek import DeepseekFamily
from janus.model.families.reader import ConfigReader


class DeepseekV3Family(DeepseekFamily):
    """A group ranks by its two best experts; the correction bias counts for the choice, not for the weights."""

    model_type = "deepseek_v3"
    architecture = "DeepseekV3ForCausalLM"
    defaults: ClassVar = {
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 2_048,
        "norm_topk_prob": True,
        "first_k_dense_replace": 3,
    }

    def refine(self, config: ModelConfig, read: ConfigReader) -> ModelConfig:
        """See ``DecoderFamily.refine``."""
        if read.raw.get("topk_method", "noaux_tc") != "noaux_tc":
            raise read.refuse("topk_method", "", "noaux_tc")
        if read.raw.get("scoring_func", "sigmoid") != "sigmoid":
            raise read.refuse("scoring_func", "", "sigmoid")
        gate = GateConfig(
            score="sigmoid",
            normalise=config.gate.normalise,
            scaling=read.number("routed_scaling_factor", default=2.5),
            groups=read.integer("n_group", default=8),
            top_groups=read.integer("topk_group", default=4),
            group_best=2,
            correction_bias=True,
        )
        return super().refine(replace(config, gate=gate), read)

    def own_json(self, config: ModelConfig) -> dict[str, Any]:
        """See ``DecoderFamily.own_json``."""
        return super().own_json(config) | {"topk_method": "noaux_tc", "scoring_func": "sigmoid"}
