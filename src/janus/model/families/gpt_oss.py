"""gpt-oss (``GptOssForCausalLM``): attention sinks, every second layer through a window, biases everywhere, MXFP4."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from janus.model.config import ClampedSwiglu, GateConfig, ModelConfig
from janus.model.families.base import AttentionSpec, FusedExpertsSpec, RouterSpec, TensorSpec
from janus.model.families.decoder import DecoderFamily
from janus.model.families.reader import ConfigReader
from janus.model.mxfp4 import BLOCK, codes_shape, scales_shape

_LAYER_TYPES = ("sliding_attention", "full_attention")


class GptOssFamily(DecoderFamily):
    """``intermediate_size`` is the width of an expert. Experts are in MXFP4, or as transformers writes them."""

    model_type = "gpt_oss"
    architecture = "GptOssForCausalLM"
    defaults: ClassVar = {
        "num_local_experts": 128,
        "num_experts_per_tok": 4,
        "intermediate_size": 2_880,
        "head_dim": 64,
        "num_key_value_heads": 8,
        "sliding_window": 128,
        "attention_bias": True,
        "rope_theta": 150_000.0,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 32.0,
            "original_max_position_embeddings": 4_096,
            "truncate": False,
        },
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131_072,
    }
    quantisations = ("mxfp4",)
    always_fused = True

    def refine(self, config: ModelConfig, read: ConfigReader) -> ModelConfig:
        """See ``DecoderFamily.refine``."""
        mxfp4 = bool(read.raw.get("quantization_config"))
        if mxfp4 and (config.hidden_size % BLOCK or config.intermediate_size % BLOCK):
            raise read.refuse("quantization_config", f" where sizes are no multiples of {BLOCK}", "mxfp4")
        return replace(
            config,
            gate=GateConfig(normalise=True, logit_bias=True),
            moe_intermediate_size=config.intermediate_size,
            expert_bias=True,
            swiglu=ClampedSwiglu(
                alpha=read.number("swiglu_alpha", default=1.702), limit=read.number("swiglu_limit", default=7.0)
            ),
            attention_sinks=True,
            sliding_windows=_windows(read),
            mxfp4=mxfp4,
        )

    def own_json(self, config: ModelConfig) -> dict[str, Any]:
        """See ``DecoderFamily.own_json``."""
        windows = config.sliding_windows or (None,) * config.num_layers
        swiglu = config.swiglu or ClampedSwiglu()
        return {
            "num_experts": None,
            "num_local_experts": config.num_experts,
            "norm_topk_prob": None,
            "moe_intermediate_size": None,
            "intermediate_size": config.moe_intermediate_size,
            "swiglu_alpha": swiglu.alpha,
            "swiglu_limit": swiglu.limit,
            "sliding_window": next((window for window in windows if window), 128),
            "layer_types": [_LAYER_TYPES[window is None] for window in windows],
            **({"quantization_config": {"quant_method": "mxfp4"}} if config.mxfp4 else {}),
        }

    def attention(self, config: ModelConfig, layer: int) -> AttentionSpec:
        """See ``Family.attention``."""
        sinks = TensorSpec(f"model.layers.{layer}.self_attn.sinks", (config.num_heads,))
        return replace(super().attention(config, layer), sinks=sinks)

    def router(self, config: ModelConfig, layer: int) -> RouterSpec:
        """See ``Family.router``."""
        prefix = f"model.layers.{layer}.mlp.router"
        return RouterSpec(
            weight=TensorSpec(f"{prefix}.weight", (config.num_experts, config.hidden_size)),
            bias=TensorSpec(f"{prefix}.bias", (config.num_experts,)),
        )

    def fused_experts(self, config: ModelConfig, layer: int) -> FusedExpertsSpec:
        """See ``Family.fused_experts``."""
        prefix = f"model.layers.{layer}.mlp.experts"
        experts, hidden, width = config.num_experts, config.hidden_size, config.moe_intermediate_size
        gate_up, down = (experts, 2 * width, hidden), (experts, hidden, width)
        gate_up_bias = TensorSpec(f"{prefix}.gate_up_proj_bias", gate_up[:2])
        down_bias = TensorSpec(f"{prefix}.down_proj_bias", down[:2])
        if not config.mxfp4:
            return FusedExpertsSpec(
                gate_up=TensorSpec(f"{prefix}.gate_up_proj", (experts, hidden, 2 * width)),
                down=TensorSpec(f"{prefix}.down_proj", (experts, width, hidden)),
                gate_up_bias=gate_up_bias,
                down_bias=down_bias,
                interleaved=True,
                transposed=True,
            )
        return FusedExpertsSpec(
            gate_up=TensorSpec(f"{prefix}.gate_up_proj_blocks", codes_shape(gate_up), codes=True),
            down=TensorSpec(f"{prefix}.down_proj_blocks", codes_shape(down), codes=True),
            gate_up_bias=gate_up_bias,
            down_bias=down_bias,
            gate_up_scales=TensorSpec(f"{prefix}.gate_up_proj_scales", scales_shape(gate_up), codes=True),
            down_scales=TensorSpec(f"{prefix}.down_proj_scales", scales_shape(down), codes=True),
            interleaved=True,
        )


def _windows(read: ConfigReader) -> tuple[int | None, ...]:
    """By layer: its window or None. ``layer_types`` says which; without it every second layer from the first on."""
    layers = read.integer("num_hidden_layers")
    types = read.raw.get("layer_types") or [_LAYER_TYPES[layer % 2] for layer in range(layers)]
    if not isinstance(types, list) or len(types) != layers or not set(types) <= set(_LAYER_TYPES):
        raise read.refuse("layer_types", "", f"{' or '.join(_LAYER_TYPES)}, one for each of {layers} layers")
    window = read.integer("sliding_window")
    return tuple(window if kind == _LAYER_TYPES[0] else None for kind in types)
