"""Mixtral equals transformers, over the switches that its config has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import MixtralConfig

from tests.model.families.harness import TINY, both, check_family, check_random_model, config_in, write

VARIANTS: dict[str, dict[str, Any]] = {
    "grouped_query": {},
    "wide_heads_tied": {"head_dim": 32, "num_key_value_heads": 1, "tie_word_embeddings": True},
    "one_expert_of_three": {"num_local_experts": 3, "num_experts_per_tok": 1, "num_key_value_heads": 4},
    "sliding_window": {"sliding_window": 24, "num_local_experts": 5, "num_experts_per_tok": 5},
}


def config_of(**changes: Any) -> MixtralConfig:
    return MixtralConfig(**TINY | {"intermediate_size": 28} | changes)


@both
@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_equals_transformers(tmp_path: Path, changes: dict[str, Any], kernels: bool) -> None:
    check_family(write(config_of(**changes), tmp_path / "model"), kernels=kernels)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_random_models_are_read_alike(tmp_path: Path, changes: dict[str, Any]) -> None:
    check_random_model(config_in(write(config_of(**changes), tmp_path / "model")), tmp_path)
