"""The GPU benchmark without a GPU: it says what is missing, and its tables are those of the CPU."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.gpu import __main__ as command
from benchmarks.gpu import aebs

from janus.core.placement import static_placement
from janus.core.scheduling import layer_tables
from janus.model.kernels import aebs_gpu


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "gpu.json"
    monkeypatch.setattr(sys, "argv", ["gpu", "--output", str(output)])
    assert command.main() == 2
    assert "torch sees no CUDA device" in capsys.readouterr().err
    assert not output.exists()


def test_the_tables_keep_every_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aebs_gpu.GpuTables, "__post_init__", lambda self: None)  # which wants a CUDA device
    placement = static_placement(
        num_layers=1,
        num_experts=70,
        instances=tuple(f"expert-{index}" for index in range(64)),
        slots_per_instance=3,
    )
    tables, plain = aebs.to_device(placement, 0, torch.device("cpu")), layer_tables(placement, 0)
    assert np.array_equal(tables.hosts.numpy().view(np.uint64), plain.hosts)
    assert plain.hosts.max() >= 1 << 63
    assert np.array_equal(tables.order.numpy(), plain.order)
    assert np.array_equal(tables.phys_of.numpy(), plain.phys_of)
