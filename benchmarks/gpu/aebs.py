"""``kernels/aebs.cu`` on a device: bit for bit what the CPU decides, and its time by graph replay."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from benchmarks.scheduling.routing import SHAPES, Trace, seeded, synthetic

from janus.core.placement import Placement
from janus.core.scheduling import layer_tables
from janus.model.kernels import aebs_gpu
from janus.model.kernels.scheduling import fastest_scheduler

_ROUTING = "zipf-1.0"
#: Launches in one graph: many, so that starting the replay does not count; each on the ids of another batch.
_IN_GRAPH = 64
_REPLAYS = 30


def measure_aebs(*, batches: Sequence[int], instances: Sequence[int], device: torch.device) -> Iterator[dict[str, Any]]:
    """Yield one entry per shape, number of instances and batch size; microseconds of one launch.

    Raises:
        AssertionError: the device decided otherwise than the CPU; the message names the case.
    """
    for shape in SHAPES:
        trace = synthetic(shape, _ROUTING)
        for number in instances:
            placement = trace.placement(number)
            tables = to_device(placement, 0, device)
            for size in batches:
                ids = _batches(trace, number, size)
                _check(ids, placement, tables, f"{shape.name}, {number} instances, {size} tokens")
                yield {"shape": shape.name, "instances": number, "batch": size, **_time(ids, tables, device)}


def to_device(placement: Placement, layer: int, device: torch.device) -> aebs_gpu.GpuTables:
    """Return the tables of one layer on ``device``."""
    tables = layer_tables(placement, layer)
    return aebs_gpu.GpuTables(
        order=torch.from_numpy(tables.order).to(device),
        hosts=torch.from_numpy(tables.hosts.view(np.int64)).to(device),
        phys_of=torch.from_numpy(tables.phys_of).to(device),
    )


def _batches(trace: Trace, instances: int, size: int) -> list[np.ndarray[Any, np.dtype[np.int32]]]:
    random = seeded("gpu", trace.shape, instances, size)
    return [np.ascontiguousarray(trace.batch(random, size)[0], dtype=np.int32) for _ in range(_IN_GRAPH)]


def _check(
    batches: Sequence[np.ndarray[Any, np.dtype[np.int32]]],
    placement: Placement,
    tables: aebs_gpu.GpuTables,
    case: str,
) -> None:
    scheduler = fastest_scheduler("aebs")
    for ids in batches:
        got = aebs_gpu.schedule(torch.from_numpy(ids).to(tables.order.device), tables)
        wanted = scheduler(ids, placement, 0)
        assert np.array_equal(got.phys.cpu().numpy(), wanted.phys_ids), f"{case}: physical ids differ"
        assert np.array_equal(got.load.cpu().numpy(), wanted.load), f"{case}: loads differ"
        stats = [wanted.activated, wanted.a_max, wanted.repairs, int(bool(wanted.proven))]
        assert got.stats.tolist() == stats, f"{case}: stats {got.stats.tolist()}, expected {stats}"


def _time(
    batches: Sequence[np.ndarray[Any, np.dtype[np.int32]]], tables: aebs_gpu.GpuTables, device: torch.device
) -> dict[str, float]:
    """Median and best time of a launch within a replayed graph, in microseconds."""
    ids = [torch.from_numpy(each).to(device) for each in batches]
    kept = [aebs_gpu.schedule(each, tables) for each in ids]  # compiled, and memory is there
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = [aebs_gpu.schedule(each, tables) for each in ids]
    spent = []
    for _ in range(_REPLAYS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        spent.append(1e3 * start.elapsed_time(end) / len(kept))
    return {"median_us": round(statistics.median(spent), 3), "best_us": round(min(spent), 3)}
