"""DeepSeek-V2 equals transformers, over the switches that its config has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import DeepseekV2Config

from tests.model.families.harness import TINY, both, check_family, check_random_model, config_in, write

YARN = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 16.0,
    "original_max_position_embeddings": 32,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 0.707,
    "mscale_all_dim": 0.707,
}

VARIANTS: dict[str, dict[str, Any]] = {
    "lite": {"q_lora_rank": None, "first_k_dense_replace": 1, "rope_parameters": YARN},
    "groups": {
        "topk_method": "group_limited_greedy",
        "n_group": 4,
        "topk_group": 2,
        "routed_scaling_factor": 16.0,
        "first_k_dense_replace": 1,
    },
    "biases_no_dense_layer": {"attention_bias": True, "n_shared_experts": 1, "rms_norm_eps": 1e-3},
    "wide_values_tied": {"v_head_dim": 24, "qk_nope_head_dim": 10, "tie_word_embeddings": True, "q_lora_rank": None},
    "odd_sizes": {"kv_lora_rank": 22, "v_head_dim": 5, "qk_rope_head_dim": 6, "num_experts_per_tok": 1},
}


def config_of(**changes: Any) -> DeepseekV2Config:
    own = {
        "num_key_value_heads": 4,
        "intermediate_size": 56,
        "moe_intermediate_size": 20,
        "n_routed_experts": 12,
        "num_experts_per_tok": 3,
        "kv_lora_rank": 32,
        "q_lora_rank": 24,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8,
        "v_head_dim": 12,
    }
    return DeepseekV2Config(**TINY | own | changes)


@both
@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_equals_transformers(tmp_path: Path, changes: dict[str, Any], kernels: bool) -> None:
    check_family(write(config_of(**changes), tmp_path / "model"), kernels=kernels)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_random_models_are_read_alike(tmp_path: Path, changes: dict[str, Any]) -> None:
    check_random_model(config_in(write(config_of(**changes), tmp_path / "model")), tmp_path)
