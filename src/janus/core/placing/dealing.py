"""The even deal: experts round-robin, spare slots filled with replicas of the busiest."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import numpy as np
import numpy.typing as npt

from janus.core.placing.replicas import replica_counts


def at_least_a_little(counts: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return float[E], loads to place by: an expert never seen counts a little, so that its replicas spread too."""
    return np.maximum(counts, max(float(counts.max()), 1.0) * 1e-9)


def deal(
    loads: npt.NDArray[np.float64],
    quotas: Sequence[int],
    *,
    layer: int,
    speeds: Sequence[float] | None = None,
    least: int = 1,
) -> list[list[int]]:
    """Return the experts of each host of one layer, in the order in which they were dealt.

    First replicas go round, from host ``layer % G`` on, so that what does not divide evenly is not always on the same
    hosts. The others go, in descending order of load, to the host with the least load for its speed. Every host gets
    its quota.

    Args:
        loads: float[E], above 0.
        quotas: slots to fill on each host, each at most E, together at least E.
        layer: its number.
        speeds: of each host; alike unless given.
        least: replicas of every expert, as many as fit.
    """
    total, room = len(quotas), np.array(quotas)
    counts = replica_counts(loads, total_slots=int(room.sum()), num_instances=total, least=least)
    share = loads / counts
    speed = np.ones(total) if speeds is None else np.array(speeds, dtype=np.float64)
    held: list[list[int]] = [[] for _ in range(total)]
    on = np.zeros((len(loads), total), dtype=bool)
    load = np.zeros(total)

    def put(expert: int, host: int) -> None:
        held[host].append(expert)
        on[expert, host] = True
        load[host] += share[expert] / speed[host]
        room[host] -= 1

    host = layer % total
    for expert in range(len(loads)):
        while room[host] <= 0:
            host = (host + 1) % total
        put(expert, host)
        host = (host + 1) % total
    busiest_first = np.argsort(-share, kind="stable").tolist()
    for expert in busiest_first:
        for _ in range(int(counts[expert]) - 1):
            closed = (room <= 0) | on[expert]
            if closed.all():
                break
            put(expert, int(np.where(closed, np.inf, load).argmin()))
    # Now and then the last free slots are where the last experts are already; others make use of them.
    for host, free in enumerate(room.tolist()):
        missing = (expert for expert in busiest_first if not on[expert, host])
        for expert in list(islice(missing, free)):
            put(expert, host)
    return held
