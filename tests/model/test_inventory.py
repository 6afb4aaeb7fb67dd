"""What a model is made of: every tensor has one role, and the planner's counts are the same."""

from __future__ import annotations

import math

import pytest

from janus.core.planning.catalog import named, names
from janus.core.planning.known_models import CONFIGS
from janus.model.config import ModelConfig
from janus.model.families import FAMILIES, family_of
from janus.model.inventory import EXPERTS, parts_of, placed

SERVED = [name for name in names() if CONFIGS[name].config["model_type"] in FAMILIES]


def config_of(name: str) -> ModelConfig:
    raw = CONFIGS[name].config
    return family_of(raw, name).parse_config(raw, {}, name)


@pytest.mark.parametrize("name", SERVED)
def test_the_planner_counts_the_same(name: str) -> None:
    """The planner reads keys, a family's adapter shapes of tensors; they were written apart."""
    sizes, config = named(name), config_of(name)
    parts = {part.role: part.parameters for part in parts_of(config)}
    assert config.expert_parameters == sizes.expert_params
    assert parts[EXPERTS] == sizes.expert_params * sizes.experts * sizes.moe_layers
    attention_side = sum(count for role, count in parts.items() if role != EXPERTS)
    assert attention_side == sizes.attention_side_params
    assert parts["attention"] == sizes.attention_params * sizes.layers
    assert config.kv_layout.bytes_per_token(1) == sizes.kv_elements * sizes.layers


def test_every_family_is_among_them() -> None:
    assert {config_of(name).family for name in SERVED} == set(FAMILIES)


def test_stored_tensors_of_fused_experts_are_as_many_elements() -> None:
    config = config_of("gpt-oss-20b")
    experts = next(part for part in parts_of(config) if part.role == EXPERTS)
    biases = config.num_moe_layers * config.num_experts * (2 * config.moe_intermediate_size + config.hidden_size)
    codes = sum(math.prod(spec.shape) for spec in experts.tensors if spec.name.endswith("_blocks"))
    assert 2 * codes + biases == experts.parameters


def test_instances_hold_what_is_left_when_experts_divide_unevenly() -> None:
    config = config_of("OLMoE")
    held = placed(config, experts=5, dtype_bytes=2)
    assert held.slots == 13
    assert held.expert_instance == 13 * 16 * 3 * 2048 * 1024 * 2
