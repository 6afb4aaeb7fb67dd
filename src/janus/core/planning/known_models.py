"""The models known by name: the keys of their published ``config.json`` that sizes follow from. Pure data.

``parameters`` is what the publisher states, in total; the tests hold the counts that follow from the keys against it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """One model: what it is made of, where that is published, and its stated number of parameters."""

    config: Mapping[str, Any]
    source: str
    parameters: float


_FP8 = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}
_MLA = {"kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}
_DEEPSEEK_V2 = {
    "model_type": "deepseek_v2",
    "hidden_size": 5120,
    "num_hidden_layers": 60,
    "num_attention_heads": 128,
    "q_lora_rank": 1536,
    **_MLA,
    "n_routed_experts": 160,
    "n_shared_experts": 2,
    "num_experts_per_tok": 6,
    "moe_intermediate_size": 1536,
    "intermediate_size": 12288,
    "first_k_dense_replace": 1,
    "vocab_size": 102400,
    "torch_dtype": "bfloat16",
}
_DEEPSEEK_V3 = {
    "model_type": "deepseek_v3",
    "hidden_size": 7168,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "q_lora_rank": 1536,
    **_MLA,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 2048,
    "intermediate_size": 18432,
    "first_k_dense_replace": 3,
    "vocab_size": 129280,
    "torch_dtype": "bfloat16",
    "quantization_config": _FP8,
}
_QWEN3 = {
    "model_type": "qwen3_moe",
    "head_dim": 128,
    "num_key_value_heads": 4,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "vocab_size": 151936,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
_QWEN2 = {
    "model_type": "qwen2_moe",
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "vocab_size": 151936,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
_GLM = {
    "model_type": "glm4_moe",
    "num_attention_heads": 96,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "attention_bias": True,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "vocab_size": 151552,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
_MIXTRAL = {
    "model_type": "mixtral",
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "vocab_size": 32000,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
_GPT_OSS = {
    "model_type": "gpt_oss",
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "attention_bias": True,
    "num_experts_per_tok": 4,
    "vocab_size": 201088,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "quantization_config": {"quant_method": "mxfp4"},
}
_SCALED = "arXiv 2512.13525, section 5: DeepSeek-V2 with other experts"

CONFIGS: Mapping[str, Published] = {
    "DeepSeek-V2": Published(config=_DEEPSEEK_V2, source="huggingface.co/deepseek-ai/DeepSeek-V2", parameters=236e9),
    "DeepSeek-V2-Lite": Published(
        config=_DEEPSEEK_V2
        | {
            "hidden_size": 2048,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
            "q_lora_rank": None,
            "n_routed_experts": 64,
            "moe_intermediate_size": 1408,
            "intermediate_size": 10944,
        },
        source="huggingface.co/deepseek-ai/DeepSeek-V2-Lite",
        parameters=15.7e9,
    ),
    "DeepSeek-V3": Published(config=_DEEPSEEK_V3, source="huggingface.co/deepseek-ai/DeepSeek-V3", parameters=671e9),
    "Kimi-K2": Published(
        config=_DEEPSEEK_V3
        | {
            "model_type": "kimi_k2",
            "num_attention_heads": 64,
            "n_routed_experts": 384,
            "first_k_dense_replace": 1,
            "vocab_size": 163840,
        },
        source="huggingface.co/moonshotai/Kimi-K2-Instruct; stated as 1T, counted by tensor as 1.026T",
        parameters=1.026e12,
    ),
    "Qwen3-30B-A3B": Published(
        config=_QWEN3
        | {
            "hidden_size": 2048,
            "num_hidden_layers": 48,
            "num_attention_heads": 32,
            "moe_intermediate_size": 768,
            "intermediate_size": 6144,
        },
        source="huggingface.co/Qwen/Qwen3-30B-A3B",
        parameters=30.5e9,
    ),
    "Qwen3-235B-A22B": Published(
        config=_QWEN3
        | {
            "hidden_size": 4096,
            "num_hidden_layers": 94,
            "num_attention_heads": 64,
            "moe_intermediate_size": 1536,
            "intermediate_size": 12288,
        },
        source="huggingface.co/Qwen/Qwen3-235B-A22B",
        parameters=235e9,
    ),
    "Qwen1.5-MoE-A2.7B": Published(
        config=_QWEN2
        | {
            "hidden_size": 2048,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "num_experts": 60,
            "num_experts_per_tok": 4,
            "moe_intermediate_size": 1408,
            "shared_expert_intermediate_size": 5632,
            "intermediate_size": 5632,
        },
        source="huggingface.co/Qwen/Qwen1.5-MoE-A2.7B",
        parameters=14.3e9,
    ),
    "Qwen2-57B-A14B": Published(
        config=_QWEN2
        | {
            "hidden_size": 3584,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "num_experts": 64,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 2560,
            "shared_expert_intermediate_size": 20480,
            "intermediate_size": 18944,
        },
        source="huggingface.co/Qwen/Qwen2-57B-A14B",
        parameters=57.4e9,
    ),
    "GLM-4.5": Published(
        config=_GLM
        | {
            "hidden_size": 5120,
            "num_hidden_layers": 92,
            "use_qk_norm": True,
            "n_routed_experts": 160,
            "moe_intermediate_size": 1536,
            "intermediate_size": 12288,
            "first_k_dense_replace": 3,
        },
        source="huggingface.co/zai-org/GLM-4.5",
        parameters=355e9,
    ),
    "GLM-4.5-Air": Published(
        config=_GLM
        | {
            "hidden_size": 4096,
            "num_hidden_layers": 46,
            "use_qk_norm": False,
            "n_routed_experts": 128,
            "moe_intermediate_size": 1408,
            "intermediate_size": 10944,
            "first_k_dense_replace": 1,
        },
        source="huggingface.co/zai-org/GLM-4.5-Air",
        parameters=106e9,
    ),
    "gpt-oss-120b": Published(
        config=_GPT_OSS | {"num_hidden_layers": 36, "num_local_experts": 128},
        source="huggingface.co/openai/gpt-oss-120b",
        parameters=116.8e9,
    ),
    "gpt-oss-20b": Published(
        config=_GPT_OSS | {"num_hidden_layers": 24, "num_local_experts": 32},
        source="huggingface.co/openai/gpt-oss-20b",
        parameters=20.9e9,
    ),
    "Mixtral-8x7B": Published(
        config=_MIXTRAL
        | {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 14336},
        source="huggingface.co/mistralai/Mixtral-8x7B-v0.1",
        parameters=46.7e9,
    ),
    "Mixtral-8x22B": Published(
        config=_MIXTRAL
        | {"hidden_size": 6144, "num_hidden_layers": 56, "num_attention_heads": 48, "intermediate_size": 16384},
        source="huggingface.co/mistralai/Mixtral-8x22B-v0.1",
        parameters=141e9,
    ),
    "OLMoE": Published(
        config={
            "model_type": "olmoe",
            "hidden_size": 2048,
            "num_hidden_layers": 16,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "num_experts": 64,
            "num_experts_per_tok": 8,
            "intermediate_size": 1024,
            "vocab_size": 50304,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
        },
        source="huggingface.co/allenai/OLMoE-1B-7B-0924",
        parameters=6.92e9,
    ),
    "Scaled-DS-1": Published(
        config=_DEEPSEEK_V2 | {"num_experts_per_tok": 8, "moe_intermediate_size": 1024},
        source=_SCALED,
        parameters=0.0,
    ),
    "Scaled-DS-2": Published(
        config=_DEEPSEEK_V2 | {"n_routed_experts": 200, "num_experts_per_tok": 8}, source=_SCALED, parameters=0.0
    ),
    "janus-tiny": Published(
        config={
            "model_type": "qwen3_moe",
            "hidden_size": 256,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 64,
            "num_experts": 16,
            "num_experts_per_tok": 4,
            "moe_intermediate_size": 128,
            "intermediate_size": 512,
            "vocab_size": 4096,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
        },
        source="models/janus-tiny",
        parameters=11.7e6,
    ),
}
