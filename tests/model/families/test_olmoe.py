"""OLMoE equals transformers, over the switches that its config has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import OlmoeConfig

from tests.model.families.harness import TINY, both, check_family, check_random_model, config_in, write

VARIANTS: dict[str, dict[str, Any]] = {
    "multi_head": {"num_key_value_heads": 4},
    "grouped_query_clipped": {"clip_qkv": 0.4},
    "biases_normalised": {"attention_bias": True, "norm_topk_prob": True, "num_experts_per_tok": 1},
    "tied_all_experts": {"tie_word_embeddings": True, "num_experts": 4, "num_experts_per_tok": 4},
}


def config_of(**changes: Any) -> OlmoeConfig:
    return OlmoeConfig(**TINY | {"intermediate_size": 20, "num_experts": 9, "num_experts_per_tok": 3} | changes)


@both
@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_equals_transformers(tmp_path: Path, changes: dict[str, Any], kernels: bool) -> None:
    check_family(write(config_of(**changes), tmp_path / "model"), kernels=kernels)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_random_models_are_read_alike(tmp_path: Path, changes: dict[str, Any]) -> None:
    check_random_model(config_in(write(config_of(**changes), tmp_path / "model")), tmp_path)
