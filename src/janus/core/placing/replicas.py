"""How many replicas each expert of a layer gets."""

from __future__ import annotations

import heapq

import numpy as np
import numpy.typing as npt


def replica_counts(
    loads: npt.NDArray[np.float64], *, total_slots: int, num_instances: int, least: int = 1
) -> npt.NDArray[np.int64]:
    """Return int64[E], how many replicas each expert of a layer gets: at least one, at most one per instance.

    The paper's rule (arXiv 2512.13525, appendix B): every further slot goes to the expert with the largest load per
    replica, ``c(e) / R(e)``; of equal ones, to the first.

    Args:
        loads: float[E], c(e).
        total_slots: to be used, at least E; those above ``E * num_instances`` stay empty.
        num_instances: hosts, on each of which an expert can be once.
        least: replicas that every expert gets before the rule begins, as many as fit.
    """
    first = max(1, min(least, total_slots // len(loads), num_instances))
    counts = np.full(len(loads), first, dtype=np.int64)
    heap = [(-float(load) / first, expert) for expert, load in enumerate(loads)] if num_instances > first else []
    heapq.heapify(heap)
    for _ in range(total_slots - first * len(loads)):
        if not heap:
            break
        _, expert = heapq.heappop(heap)
        counts[expert] += 1
        if counts[expert] < num_instances:
            heapq.heappush(heap, (-float(loads[expert]) / int(counts[expert]), expert))
    return counts
