"""GLM-4.5 equals transformers, over the switches that its config has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import Glm4MoeConfig

from tests.model.families.harness import TINY, both, check_family, check_random_model, config_in, write

VARIANTS: dict[str, dict[str, Any]] = {
    "air": {"attention_bias": True, "routed_scaling_factor": 1.5},
    "query_key_norms": {"use_qk_norm": True, "first_k_dense_replace": 2, "n_shared_experts": 2},
    "groups": {"n_group": 4, "topk_group": 2, "norm_topk_prob": False, "num_key_value_heads": 4},
    "a_quarter_rotated": {"partial_rotary_factor": 0.25, "head_dim": 24, "tie_word_embeddings": True},
    "all_layers_have_experts": {"first_k_dense_replace": 0, "partial_rotary_factor": 1.0, "num_experts_per_tok": 1},
}


def config_of(**changes: Any) -> Glm4MoeConfig:
    own = {
        "intermediate_size": 56,
        "moe_intermediate_size": 20,
        "head_dim": 16,
        "n_routed_experts": 12,
        "num_experts_per_tok": 3,
    }
    return Glm4MoeConfig(**TINY | own | changes)


@both
@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_equals_transformers(tmp_path: Path, changes: dict[str, Any], kernels: bool) -> None:
    check_family(write(config_of(**changes), tmp_path / "model"), kernels=kernels)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_random_models_are_read_alike(tmp_path: Path, changes: dict[str, Any]) -> None:
    check_random_model(config_in(write(config_of(**changes), tmp_path / "model")), tmp_path)
