"""The GPU benchmark without a GPU: it says what is missing; its tables are the CPU's; its exchange runs on the host."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.gpu import __main__ as command
from benchmarks.gpu import aebs
from benchmarks.gpu.exchange import WAYS, measure_exchange
from benchmarks.gpu.exchange_device import pattern

from janus.core.placement import static_placement
from janus.core.scheduling import layer_tables
from janus.model.kernels import aebs_gpu
from tests.transport.helpers import needs_shared_memory


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("only", [[], ["--only", "exchange"]], ids=["all", "exchange"])
def test_without_a_device_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], only: list[str]
) -> None:
    output = tmp_path / "gpu.json"
    monkeypatch.setattr(sys, "argv", ["gpu", "--output", str(output), *only])
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


@needs_shared_memory
@pytest.mark.parametrize(("owner", "reader"), [(0, 0), (1, 0)])
def test_the_exchange_brings_every_byte_in_every_way(owner: int, reader: int) -> None:
    sizes = (1000, 3 << 20)
    entries = list(
        measure_exchange(sizes=sizes, rounds=2, owner=owner, reader=reader, devices="tests.bench.host_device")
    )
    assert [(each["bytes"], each["way"]) for each in entries] == [(size, way) for size in sizes for way in WAYS]
    for each in entries:
        assert 0 < each["best_us"] <= each["median_us"]
        assert ("copies_gb_s" in each) == (each["way"] in ("ipc", "memcpy"))


@needs_shared_memory
def test_an_exchange_that_fails_says_so(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match="the owner of the memory has failed"):
        list(measure_exchange(sizes=[64], rounds=1, owner=7, reader=0, devices="tests.bench.host_device"))
    with pytest.raises(RuntimeError, match="the reader of the memory has failed"):
        list(measure_exchange(sizes=[64], rounds=1, owner=0, reader=7, devices="tests.bench.host_device"))
    assert "no device 7" in capfd.readouterr().err


def test_patterns_of_other_seeds_and_shifts_are_others() -> None:
    first = pattern(np, 4096, 1)
    assert not (first == pattern(np, 4096, 2)).any()
    for shift in (1, 64, 256, 1024):
        assert (first[shift:] == first[:-shift]).mean() < 0.5
