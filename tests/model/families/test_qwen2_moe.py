"""Qwen2-MoE equals transformers, over the switches that its config has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import Qwen2MoeConfig

from janus.errors import CheckpointError
from janus.model.config import ModelConfig
from tests.model.families.harness import TINY, both, check_family, check_random_model, config_in, write

VARIANTS: dict[str, dict[str, Any]] = {
    "gated_shared_expert": {},
    "normalised_no_biases": {"norm_topk_prob": True, "qkv_bias": False, "num_key_value_heads": 4},
    "some_dense_layers": {"mlp_only_layers": [0], "decoder_sparse_step": 2, "num_hidden_layers": 4},
    "narrow_shared_expert_tied": {
        "shared_expert_intermediate_size": 7,
        "tie_word_embeddings": True,
        "num_experts": 3,
        "num_experts_per_tok": 1,
    },
}


def config_of(**changes: Any) -> Qwen2MoeConfig:
    own = {
        # With 0.3, log-probabilities in f32 are up to 1.1e-4 off f64 in transformers; 1.6e-5 with this.
        "initializer_range": 0.2,
        "intermediate_size": 56,
        "moe_intermediate_size": 20,
        "shared_expert_intermediate_size": 44,
        "num_experts": 9,
        "num_experts_per_tok": 3,
    }
    return Qwen2MoeConfig(**TINY | own | changes)


@both
@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_equals_transformers(tmp_path: Path, changes: dict[str, Any], kernels: bool) -> None:
    engine = check_family(write(config_of(**changes), tmp_path / "model"), kernels=kernels)
    assert engine.model.has_shared_expert


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_random_models_are_read_alike(tmp_path: Path, changes: dict[str, Any]) -> None:
    check_random_model(config_in(write(config_of(**changes), tmp_path / "model")), tmp_path)


def test_a_sliding_window_is_refused(tmp_path: Path) -> None:
    """Which layers it is for changed between versions of transformers, and no published checkpoint has it on."""
    raw = config_of().to_dict() | {"use_sliding_window": True}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match="use_sliding_window = True is not supported"):
        ModelConfig.load(tmp_path)
