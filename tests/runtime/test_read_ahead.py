"""The first placement is read ahead, by another thread than the one that packs; later ones, beside dispatches, not."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from janus.model.checkpoint import Checkpoint
from janus.runtime.expert_engine import ExpertEngine
from tests.runtime.world import EXPERTS, table


@pytest.mark.parametrize("rate", [0.0, 1e12], ids=["free", "limited"])
async def test_only_a_start_without_a_limit_is_read_ahead(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch, rate: float
) -> None:
    checkpoint = Checkpoint.open(model_dir)
    config, read, threads = checkpoint.config, checkpoint.read_expert, list[str]()

    def noted(layer: int, expert: int, dtype: torch.dtype) -> object:
        threads.append(threading.current_thread().name.rpartition("_")[0])
        return read(layer, expert, dtype)

    monkeypatch.setattr(checkpoint, "read_expert", noted)
    expert = ExpertEngine(
        checkpoint=checkpoint,
        config=config,
        dtype=torch.float32,
        device=torch.device("cpu"),
        instance="expert-0",
        load_rate=rate,
    )
    half = EXPERTS // 2
    other = [*range(half, EXPERTS), *[-1] * half]
    first = await expert.load(table([*range(half), *[-1] * half], other))
    count = half * config.num_moe_layers
    ahead = ["replica-loader"] + ["replica-reader"] * (count - 1)
    assert threads == (ahead if not rate else ["replica-loader"] * count)
    assert first.bytes_read == count * checkpoint.expert_nbytes(config.moe_layers[0], 0)
    threads.clear()
    second = await expert.load(table([*range(EXPERTS)], other, epoch=2))
    assert threads == ["replica-loader"] * count
    assert second.bytes_read == first.bytes_read
    expert.close()
    checkpoint.close()
