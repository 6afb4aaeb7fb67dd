"""Where micro-batches pay, and that ``auto`` finds out: the engine as it is, in front of experts with a given pace."""

from __future__ import annotations

import asyncio

import pytest
import torch
from benchmarks.micro_batches import Setting, speed

from janus.model.attention_model import AttentionModel
from janus.model.checkpoint import Checkpoint
from janus.model.random_model import random_config, write_random_model

#: A network that is slow, and experts that take as long per row as attention does.
SLOW = Setting(round_trip_us=150, expert_us=3, row_us=15)
#: No network to speak of, and experts whose time goes into reading weights: twice as long for two halves.
NEAR = Setting(round_trip_us=10, expert_us=80, row_us=0.1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> AttentionModel:
    config = random_config(num_layers=2, num_experts=8, top_k=3, hidden_size=32, num_heads=2)
    path = write_random_model(tmp_path_factory.mktemp("micro-batches") / "model", config, seed=3, std=0.3)
    checkpoint = Checkpoint.open(path)
    loaded = AttentionModel.load(checkpoint, config, torch.float32, torch.device("cpu"))
    checkpoint.close()
    return loaded


def tokens_per_s(model: AttentionModel, setting: Setting, choice: str) -> float:
    """Attention takes 40 us per layer and 15 us per row."""
    return asyncio.run(
        speed(model, setting, choice, streams=16, tokens=200, rounds=4, attention_us=lambda rows: 40 + 15 * rows)
    )


def test_two_pay_where_the_experts_are_far(model: AttentionModel) -> None:
    one, two, auto = (tokens_per_s(model, SLOW, choice) for choice in ("1", "2", "auto"))
    assert two > 1.25 * one
    assert auto > 0.95 * two


def test_one_pays_where_the_experts_are_near(model: AttentionModel) -> None:
    one, two, auto = (tokens_per_s(model, NEAR, choice) for choice in ("1", "2", "auto"))
    assert two < 0.95 * one
    assert auto > 0.97 * one


def test_the_figures_are_the_same_every_time(model: AttentionModel) -> None:
    assert tokens_per_s(model, SLOW, "auto") == tokens_per_s(model, SLOW, "auto")
