"""Random-weight checkpoints, made and written by ``transformers``: Qwen3-MoE in many shapes, other families in one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    DeepseekV2Config,
    DeepseekV3Config,
    Glm4MoeConfig,
    GptOssConfig,
    MixtralConfig,
    OlmoeConfig,
    PreTrainedConfig,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
)

from tests.e2e import vocabularies

BUNDLED = Path(__file__).parents[2] / "models" / "janus-tiny"
_VOCAB = 300
#: Large, so that answers vary: with the usual 0.02 a random model repeats one token for ever (here about 30 of 64
#: tokens of an answer differ; float32 is within 4e-5 of float64 in every log-probability).
_STD = 0.3


@dataclass(frozen=True)
class Shape:
    """One random model: what differs from the defaults below, and how its tokens read."""

    config: dict[str, Any]
    write_tokenizer: Callable[[Path, int], None] = vocabularies.write_named
    #: Largest file, so that some checkpoints come in shards.
    shard_size: str = "1GB"
    family: type[PreTrainedConfig] = Qwen3MoeConfig


SHAPES: dict[str, Shape] = {
    # Grouped-query attention, heads that together are wider than the model, normalised gate weights.
    "grouped": Shape({"head_dim": 32, "num_experts": 8, "num_experts_per_tok": 2, "norm_topk_prob": True}),
    # Tied embeddings, raw gate weights, experts that no number of instances here divides, several files.
    "tied": Shape(
        {"tie_word_embeddings": True, "num_experts": 10, "num_experts_per_tok": 4, "norm_topk_prob": False},
        shard_size="150KB",
    ),
    # One key-value head for all, one expert per token, dense layers named one by one.
    "mqa": Shape(
        {
            "num_attention_heads": 6,
            "num_key_value_heads": 1,
            "head_dim": 8,
            "num_experts": 6,
            "num_experts_per_tok": 1,
            "mlp_only_layers": [0, 2],
            "num_hidden_layers": 4,
        }
    ),
    # Every second layer is dense; as many key-value heads as heads; another base of the rotary embedding.
    "sparse": Shape(
        {
            "num_attention_heads": 3,
            "num_key_value_heads": 3,
            "head_dim": 16,
            "decoder_sparse_step": 2,
            "num_hidden_layers": 5,
            "num_experts": 16,
            "num_experts_per_tok": 5,
            "norm_topk_prob": False,
            "rope_theta": 1_000_000.0,
        }
    ),
    # Attention biases, tied embeddings, dense layers by both settings, all experts chosen, tokens that end inside
    # characters.
    "biased": Shape(
        {
            "attention_bias": True,
            "tie_word_embeddings": True,
            "decoder_sparse_step": 2,
            "mlp_only_layers": [3],
            "num_hidden_layers": 6,
            "num_experts": 4,
            "num_experts_per_tok": 4,
            "norm_topk_prob": True,
        },
        write_tokenizer=vocabularies.write_torn,
    ),
}


#: DeepSeek's latent attention, and experts behind a dense layer.
_LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 24,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "head_dim": 8,  # transformers' name for the width of the rotary part
    "v_head_dim": 12,
    "first_k_dense_replace": 1,
    "n_routed_experts": 12,
    "num_experts_per_tok": 3,
}

#: One shape of each other family, with what is its own switched on; ``tests/model/families`` has the variants.
FAMILIES: dict[str, Shape] = {
    "qwen2_moe": Shape({"num_experts": 9, "shared_expert_intermediate_size": 40}, family=Qwen2MoeConfig),
    "mixtral": Shape({"num_local_experts": 7, "sliding_window": 100}, family=MixtralConfig),
    "olmoe": Shape({"num_experts": 9, "num_experts_per_tok": 3, "clip_qkv": 2.0, "head_dim": 12}, family=OlmoeConfig),
    "glm4_moe": Shape(
        {
            "n_routed_experts": 10,
            "num_experts_per_tok": 3,
            "attention_bias": True,
            "use_qk_norm": True,
            "routed_scaling_factor": 1.5,
        },
        family=Glm4MoeConfig,
    ),
    "gpt_oss": Shape(
        {
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "sliding_window": 40,
            "initializer_range": 0.15,  # with more, float32 is too far off float64
        },
        family=GptOssConfig,
    ),
    # As V2-Lite is: queries projected at once, two shared experts, a longer context by YaRN.
    "deepseek_v2": Shape(
        {
            **_LATENT,
            "q_lora_rank": None,
            "n_shared_experts": 2,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10_000.0,
                "factor": 16.0,
                "original_max_position_embeddings": 32,
                "mscale": 0.707,
                "mscale_all_dim": 0.707,
            },
        },
        family=DeepseekV2Config,
    ),
    "deepseek_v3": Shape({**_LATENT, "q_lora_rank": 20, "n_group": 4, "topk_group": 2}, family=DeepseekV3Config),
}


def write(name: str, directory: Path) -> Path:
    """Write the model of shape ``name``, or a copy of the bundled one, and return its directory."""
    if name == "janus-tiny":
        return Path(shutil.copytree(BUNDLED, directory))
    shape = SHAPES[name] if name in SHAPES else FAMILIES[name]
    config = shape.family(
        **{
            "vocab_size": _VOCAB,
            "hidden_size": 48,
            "intermediate_size": 80,
            "moe_intermediate_size": 24,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "max_position_embeddings": 512,
            "tie_word_embeddings": False,
            "initializer_range": _STD,
            "bos_token_id": None,
            "pad_token_id": 0,
            "eos_token_id": 1,
            **shape.config,
        }
    )
    torch.manual_seed(len(name))
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter, weights in (*model.named_parameters(), *model.named_buffers()):
            # Left at 1 and 0 by the initialisation, where a weight that is never read would go unnoticed.
            if parameter.endswith(("norm.weight", "bias")):
                weights.add_(torch.randn_like(weights) * 0.1)
    directory.mkdir(parents=True)
    model.save_pretrained(directory, max_shard_size=shape.shard_size)
    shape.write_tokenizer(directory, _VOCAB)
    return directory
