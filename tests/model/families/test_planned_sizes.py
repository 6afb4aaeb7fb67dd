"""The planner counts from ``config.json`` what a server holds: parameters by role, and what a token takes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from janus.core.planning.catalog import sizes_of
from janus.model.config import ModelConfig
from janus.model.inventory import EXPERTS, parts_of
from tests.model.families.variants import VARIANTS, config_of

CASES = [(family, variant) for family, each in VARIANTS.items() for variant in each]


@pytest.mark.parametrize(("family", "variant"), CASES, ids=[f"{family}-{variant}" for family, variant in CASES])
def test_the_planner_counts_what_is_held(tmp_path: Path, family: str, variant: str) -> None:
    raw = config_of(family, **VARIANTS[family][variant]).to_dict()
    (tmp_path / "config.json").write_text(json.dumps(raw))
    config = ModelConfig.load(tmp_path)
    planned, parts = sizes_of(raw, dtype="bfloat16"), {part.role: part.parameters for part in parts_of(config)}
    assert planned.expert_params == config.expert_parameters
    assert planned.moe_layers * planned.experts * planned.expert_params == parts[EXPERTS]
    assert planned.attention_side_params == math.fsum(count for role, count in parts.items() if role != EXPERTS)
    assert planned.kv_bytes_per_token == config.kv_layout.bytes_per_token(2)
    assert planned.top_k == config.top_k
