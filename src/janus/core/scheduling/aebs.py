"""Activated-expert-balanced scheduling: one replica per activated expert, so that the busiest instance reads least.

An MoE layer takes as long as the instance that must read the most distinct experts, a_max. Choosing hosts for the
activated experts is scheduling unit jobs on restricted machines. ``aebs_greedy`` is Algorithm 1 of the Janus paper
(arXiv 2512.13525) as printed; with spare replicas it misses the least a_max in a third of the dispatches. ``aebs``
starts from a better greedy choice and repairs it along shortest augmenting paths until none is left: an assignment has
the least maximum if and only if no path leads from a fullest instance to one with two fewer (Harvey, Ladner, Lovasz,
Tamir: Semi-matchings for bipartite graphs and load balancing, J. Algorithms 59, 2006). So one failed search proves it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from janus.core.placement import Placement
from janus.core.scheduling.contract import PADDING, Assignment
from janus.core.scheduling.policies import Ids, counted
from janus.core.scheduling.tables import LayerTables, layer_tables

#: An undecided expert weighs ONE / replicas on each of its hosts, a decided one weighs ONE on its own.
ONE = 4096
#: So that no dispatch can go on for ever; a handful is the most ever seen.
MAX_REPAIRS = 4096


def aebs(topk_ids: Ids, placement: Placement, layer: int, load0: npt.NDArray[np.int32] | None = None) -> Assignment:
    """The least a_max, proven; a ``Scheduler``."""
    tables = layer_tables(placement, layer)
    active = _active(topk_ids, placement)
    total, host = _fixed(active, tables, placement, load0)
    several = [int(e) for e in tables.order if active[e] and tables.replicas[e] > 1]
    sharing = {e: ONE // int(tables.replicas[e]) for e in several}
    hosts = {e: _members(int(tables.hosts[e])) for e in several}
    potential = [ONE * each for each in total]
    for e in several:
        for g in hosts[e]:
            potential[g] += sharing[e]
    for e in several:
        for g in hosts[e]:
            potential[g] -= sharing[e]
        best = min(hosts[e], key=lambda g: (potential[g], g))
        host[e] = best
        potential[best] += ONE
        total[best] += 1
    repairs, proven = _repair(several, hosts, host, total)
    return _result(topk_ids, placement, tables, host, repairs=repairs, proven=proven)


def aebs_greedy(
    topk_ids: Ids, placement: Placement, layer: int, load0: npt.NDArray[np.int32] | None = None
) -> Assignment:
    """Algorithm 1 as printed: experts by id, each to its least loaded host so far; a ``Scheduler``."""
    tables = layer_tables(placement, layer)
    active = _active(topk_ids, placement)
    total, host = _fixed(active, tables, placement, load0)
    for e in np.flatnonzero(active & (tables.replicas > 1)).tolist():
        host[e] = min(_members(int(tables.hosts[e])), key=lambda g: (total[g], g))
        total[host[e]] += 1
    return _result(topk_ids, placement, tables, host)


def _active(topk_ids: Ids, placement: Placement) -> npt.NDArray[np.bool_]:
    active = np.zeros(placement.num_experts, dtype=bool)
    active[topk_ids[(topk_ids >= 0) & (topk_ids < placement.num_experts)]] = True
    return active


def _fixed(
    active: npt.NDArray[np.bool_],
    tables: LayerTables,
    placement: Placement,
    load0: npt.NDArray[np.int32] | None,
) -> tuple[list[int], list[int]]:
    """Return the load of each instance, and the host of each expert, after those that have no choice."""
    total = [0] * placement.num_instances if load0 is None else [int(each) for each in load0]
    host = [-1] * placement.num_experts
    for e in np.flatnonzero(active & (tables.replicas == 1)).tolist():
        (host[e],) = _members(int(tables.hosts[e]))
        total[host[e]] += 1
    return total, host


def _repair(several: list[int], hosts: dict[int, list[int]], host: list[int], total: list[int]) -> tuple[int, bool]:
    """Shift along shortest augmenting paths until the maximum is the least; changes ``host`` and ``total``.

    Returns how many shifts, and whether the result is proven.
    """
    for repairs in range(MAX_REPAIRS):
        fullest = total.index(max(total))
        path = _search(fullest, several, hosts, host, total)
        if path is None:
            return repairs, True
        target, parent = path
        total[target] += 1
        total[fullest] -= 1
        while target != fullest:
            e = parent[target]
            target, host[e] = host[e], target
    return MAX_REPAIRS, False


def _search(
    fullest: int, several: list[int], hosts: dict[int, list[int]], host: list[int], total: list[int]
) -> tuple[int, dict[int, int]] | None:
    """Breadth first from ``fullest`` to the nearest instance with two fewer: (instance, expert that leads to each)."""
    visited, frontier = {fullest}, {fullest}
    parent: dict[int, int] = {}
    while frontier:
        reached: set[int] = set()
        for e in several:
            if host[e] in frontier:
                for g in hosts[e]:
                    if g not in visited and g not in reached:
                        reached.add(g)
                        parent[g] = e
        low = [g for g in reached if total[g] <= total[fullest] - 2]
        if low:
            return min(low, key=lambda g: (total[g], g)), parent
        visited |= reached
        frontier = reached
    return None


def _result(topk_ids: Ids, placement: Placement, tables: LayerTables, host: list[int], **more: Any) -> Assignment:
    chosen = np.array([PADDING if g < 0 else tables.phys_of[e, g] for e, g in enumerate(host)], dtype=np.int32)
    real = (topk_ids >= 0) & (topk_ids < placement.num_experts)
    phys_ids = np.where(real, chosen[np.where(real, topk_ids, 0)], np.int32(PADDING))
    return counted(phys_ids, topk_ids, placement, **more)


def _members(hosts: int) -> list[int]:
    """Return the instances in a 64-bit set, ascending."""
    return [g for g in range(hosts.bit_length()) if hosts >> g & 1]
