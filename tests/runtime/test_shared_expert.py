"""A shared expert runs on the attention instance while its dispatch is away, not before and not after."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from janus.exchange.local import LocalExchange
from janus.model.attention_model import AttentionModel
from janus.model.checkpoint import Checkpoint
from janus.model.random_model import random_config, write_random_model
from tests.model.engine import Engine, full_bank
from tests.runtime.attention_harness import PROMPTS, Running, engines
from tests.waiting import turns


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Two MoE layers with a gated shared expert, and a dense one between them."""
    config = replace(
        random_config(num_layers=3, moe_layers=(0, 2), hidden_size=32, num_heads=2, attention_bias=True),
        family="qwen2_moe",
        qk_norm=False,
        shared_intermediate_size=20,
        shared_expert_gate=True,
    )
    return write_random_model(tmp_path / "model", config, seed=3, std=0.3)


async def test_it_computes_while_the_dispatch_is_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint.open(path)
    local = LocalExchange(full_bank(checkpoint, torch.float32), num_layers=2)
    prompt = PROMPTS["r1"]
    (expected,) = Engine(path, num_blocks=32).greedy([prompt], 20, chunk=16)
    computed: list[tuple[int, int]] = []
    async with engines(checkpoint, local) as start:
        running: Running = start()
        compute = AttentionModel.shared_expert

        def noted(model: AttentionModel, layer: int, x: torch.Tensor) -> torch.Tensor:
            computed.append((layer, running.exchange.held[0].layer))
            return compute(model, layer, x)

        monkeypatch.setattr(AttentionModel, "shared_expert", noted)
        running.exchange.holds = True
        running.submit("one", prompt)
        for layer, moe_layer in ((0, 0), (2, 1)):
            (receipt,) = await running.exchange.hold(1)
            await turns()  # the step goes on until it waits for the answer
            assert computed.pop() == (layer, moe_layer)
            assert not computed
            running.exchange.answer(receipt)
            if layer == 2:
                running.exchange.release()
            else:
                running.exchange.dispatched.clear()
                await running.exchange.dispatched.wait()
        monkeypatch.setattr(AttentionModel, "shared_expert", compute)
        await running.end("one")
        assert running.tokens("one") == expected
        assert running.engine.times.shared_ns > 0
    checkpoint.close()
