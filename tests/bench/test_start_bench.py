"""What the benchmark of starts reads, and what it makes of the times."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from benchmarks.start import load_attention, load_experts, ranges_of, read_raw, summary

from janus.model.checkpoint import Checkpoint
from janus.model.random_model import random_config, write_random_model


@pytest.mark.parametrize("fp8_block", [None, (16, 16)], ids=["float32", "fp8"])
def test_raw_reads_are_of_the_bytes_that_roles_read(tmp_path: Path, fp8_block: tuple[int, int] | None) -> None:
    config = replace(random_config(moe_layers=(0, 2)), fp8_block=fp8_block)
    path = write_random_model(tmp_path / "model", config, shards=2)
    ranges = ranges_of(path)
    every = sorted((each.file, each.offset, each.nbytes) for role in ranges.values() for each in role)
    for (file, offset, nbytes), (next_file, next_offset, _) in pairwise(every):
        assert file != next_file or offset + nbytes == next_offset, "ranges overlap, or leave something out"
    checkpoint = Checkpoint.open(path)
    assert sum(nbytes for *_, nbytes in every) == sum(checkpoint.where(name)[2] for name in checkpoint.names)
    for role, load in (("attention", load_attention), ("expert", load_experts)):
        assert read_raw(ranges[role])["bytes"] == load(path)["bytes"] == sum(each.nbytes for each in ranges[role])


def test_the_ratio_is_the_median_over_pairs() -> None:
    raw = [{"seconds": each} for each in (1.0, 2.0, 4.0)]
    load = [{"seconds": each, "ms_per_replica": 7.0} for each in (1.5, 2.2, 8.0)]
    figures = summary({"raw": raw, "load": load}, 2_200_000_000)
    assert (figures["ratio"], figures["load_s"], figures["raw_s"]) == (1.5, 2.2, 2.0)
    assert (figures["load_gb_per_s"], figures["ms_per_replica"]) == (1.0, 7.0)
