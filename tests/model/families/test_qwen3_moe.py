"""Qwen3-MoE equals transformers, over the switches that its config has; in FP8 see ``test_fp8.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import Qwen3MoeConfig

from tests.model.families.harness import TINY, both, check_family, check_random_model, config_in, write

YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 64}
VARIANTS: dict[str, dict[str, Any]] = {
    "one_dense_layer": {"mlp_only_layers": [1], "intermediate_size": 40},
    "multi_head_tied": {"num_key_value_heads": 4, "head_dim": 32, "tie_word_embeddings": True},
    "one_kv_head_raw_weights": {"num_key_value_heads": 1, "norm_topk_prob": False, "num_experts_per_tok": 1},
    "biases_every_second_layer": {"attention_bias": True, "decoder_sparse_step": 2, "num_hidden_layers": 4},
    "yarn_all_experts": {"rope_parameters": YARN, "num_experts": 4, "num_experts_per_tok": 4},
}


def config_of(**changes: Any) -> Qwen3MoeConfig:
    own = {"head_dim": 16, "moe_intermediate_size": 20, "intermediate_size": 56, "num_experts": 6}
    return Qwen3MoeConfig(**TINY | own | {"num_experts_per_tok": 2, "norm_topk_prob": True} | changes)


@both
@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_equals_transformers(tmp_path: Path, changes: dict[str, Any], kernels: bool) -> None:
    check_family(write(config_of(**changes), tmp_path / "model"), kernels=kernels)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_random_models_are_read_alike(tmp_path: Path, changes: dict[str, Any]) -> None:
    check_random_model(config_in(write(config_of(**changes), tmp_path / "model")), tmp_path)
