"""DeepSeek-V2 and V2-Lite (``DeepseekV2ForCausalLM``): latent attention, softmax routing within the best groups."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from janus.model.config import GateConfig, ModelConfig
from janus.model.families.deepseek import DeepseekFamily
from janus.model.families.reader import ConfigReader


class DeepseekV2Family(DeepseekFamily):
    """A group ranks by its best expert; weights are probabilities times ``routed_scaling_factor``."""

    model_type = "deepseek_v2"
    architecture = "DeepseekV2ForCausalLM"
    defaults: ClassVar = {"n_routed_experts": 64, "n_shared_experts": 2, "moe_intermediate_size": 1_407}

    def refine(self, config: ModelConfig, read: ConfigReader) -> ModelConfig:
        """See ``DecoderFamily.refine``."""
        method = read.raw.get("topk_method") or "greedy"
        if method not in {"greedy", "group_limited_greedy"}:
            raise read.refuse("topk_method", "", "greedy, group_limited_greedy")
        if read.raw.get("scoring_func", "softmax") != "softmax":
            raise read.refuse("scoring_func", "", "softmax")
        if config.gate.normalise:
            # No published model sets it, and what it does differs between DeepSeek's code and transformers.
            raise read.refuse("norm_topk_prob", "", "false")
        if read.flag("mlp_bias"):
            raise read.refuse("mlp_bias", "", "false")
        grouped = method == "group_limited_greedy"
        gate = GateConfig(
            normalise=False,
            scaling=read.number("routed_scaling_factor", default=1.0),
            groups=read.integer("n_group") if grouped else 1,
            top_groups=read.integer("topk_group") if grouped else 1,
        )
        return super().refine(replace(config, gate=gate), read)

    def own_json(self, config: ModelConfig) -> dict[str, Any]:
        """See ``DecoderFamily.own_json``."""
        method = "greedy" if config.gate.groups == 1 else "group_limited_greedy"
        return super().own_json(config) | {"topk_method": method, "scoring_func": "softmax"}
