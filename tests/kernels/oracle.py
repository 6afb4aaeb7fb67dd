"""What ``kernels/aebs.cu`` computes, written plainly; and the least a_max of any assignment, found in another way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

_SHARE = 4096
_MAX_REPAIRS = 4096


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Case:
    """One dispatch. E experts, G instances; ``load0`` int32[G], None means nothing queued."""

    name: str
    #: int32[any]: logical ids; outside 0..E-1 is padding.
    ids: npt.NDArray[np.int32]
    #: Of each expert, the instances that have a replica.
    replicas: tuple[tuple[int, ...], ...]
    instances: int
    load0: npt.NDArray[np.int32] | None = None

    @property
    def order(self) -> npt.NDArray[np.int32]:
        """int32[E]: experts by (replicas, id)."""
        return np.array(sorted(range(len(self.replicas)), key=lambda e: (len(self.replicas[e]), e)), dtype=np.int32)

    @property
    def hosts(self) -> npt.NDArray[np.uint64]:
        """uint64[E]: bit g = a replica on instance g."""
        return np.array([sum(1 << g for g in hosts) for hosts in self.replicas], dtype=np.uint64)

    @property
    def phys_of(self) -> npt.NDArray[np.int32]:
        """int32[E, G]: physical ids, -1 where there is no replica."""
        table = np.full((len(self.replicas), self.instances), -1, dtype=np.int32)
        used = [0] * self.instances
        slots = max(1, *(sum(g in hosts for hosts in self.replicas) for g in range(self.instances)))
        for e, hosts in enumerate(self.replicas):
            for g in hosts:
                table[e, g] = g * slots + used[g]
                used[g] += 1
        return table

    @property
    def activated(self) -> list[int]:
        """The experts that are activated, ascending."""
        return sorted({int(i) for i in np.unique(self.ids) if 0 <= i < len(self.replicas)})


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """The kernel's outputs; ``stats`` = activated, a_max, repairs, proven."""

    phys: npt.NDArray[np.int32]
    load: npt.NDArray[np.int32]
    active: npt.NDArray[np.uint8]
    stats: npt.NDArray[np.int32]

    def differs(self, other: Result) -> str:
        """Name the first output that is not the same, or return an empty string."""
        for name in ("stats", "active", "load", "phys"):
            mine, its = getattr(self, name), getattr(other, name)
            if not np.array_equal(mine, its):
                return f"{name}: {mine} is not {its}"
        return ""


def schedule(case: Case) -> Result:
    """Compute the dispatch of ``case``."""
    E, G = len(case.replicas), case.instances
    load0 = [0] * G if case.load0 is None else [int(x) for x in case.load0]
    total = list(load0)
    activated = set(case.activated)
    at: dict[int, int] = {}
    for e in activated:
        if len(case.replicas[e]) == 1:
            (at[e],) = case.replicas[e]
            total[at[e]] += 1
    choosing = [int(e) for e in case.order if int(e) in activated and len(case.replicas[int(e)]) > 1]
    potential = [_SHARE * total[g] for g in range(G)]
    for e in choosing:
        for g in case.replicas[e]:
            potential[g] += _SHARE // len(case.replicas[e])
    for e in choosing:
        for g in case.replicas[e]:
            potential[g] -= _SHARE // len(case.replicas[e])
        at[e] = min(case.replicas[e], key=lambda g: (potential[g], g))
        potential[at[e]] += _SHARE
        total[at[e]] += 1
    repairs, proven = _repair(case, choosing, at, total)
    phys_of = case.phys_of
    flat = [int(phys_of[i, at[int(i)]]) if 0 <= i < E else -1 for i in case.ids.ravel()]
    return Result(
        np.array(flat, dtype=np.int32).reshape(case.ids.shape),
        np.array([t - before for t, before in zip(total, load0, strict=True)], dtype=np.int32),
        np.array([e in activated for e in range(E)], dtype=np.uint8),
        np.array([len(activated), max(total), repairs, proven], dtype=np.int32),
    )


def _repair(case: Case, choosing: list[int], at: dict[int, int], total: list[int]) -> tuple[int, int]:
    for repairs in range(_MAX_REPAIRS):
        most = max(total)
        source = total.index(most)
        parent = _search(case, choosing, at, total, source)
        if parent is None:
            return repairs, 1
        target, by = parent
        g = target
        while g != source:
            e = by[g]
            g, at[e] = at[e], g
        total[source] -= 1
        total[target] += 1
    return _MAX_REPAIRS, 0


def _search(
    case: Case, choosing: list[int], at: dict[int, int], total: list[int], source: int
) -> tuple[int, dict[int, int]] | None:
    """Breadth-first from ``source``: the nearest instance with at least two fewer, and who leads there; or None."""
    by: dict[int, int] = {}
    visited = frontier = {source}
    while frontier:
        reached: set[int] = set()
        for g in set(range(case.instances)) - visited:
            movers = [e for e in choosing if at[e] in frontier and g in case.replicas[e]]
            if movers:
                by[g] = movers[0]
                reached.add(g)
        enough = [g for g in reached if total[g] <= total[source] - 2]
        if enough:
            return min(enough, key=lambda g: (total[g], g)), by
        visited, frontier = visited | reached, reached
    return None


def optimum(case: Case) -> int:
    """Return the least a_max of any assignment: capacities are raised until every activated expert finds a place.

    Augmenting paths of a bipartite matching with capacities; it shares nothing with ``schedule``.
    """
    room = [0] * case.instances if case.load0 is None else [-int(x) for x in case.load0]
    held: list[list[int]] = [[] for _ in range(case.instances)]
    most = max(-x for x in room)
    room = [most + x for x in room]

    def place(expert: int, tried: set[int]) -> bool:
        for g in case.replicas[expert]:
            if g in tried:
                continue
            tried.add(g)
            if len(held[g]) < room[g]:
                held[g].append(expert)
                return True
            for other in list(held[g]):
                if place(other, tried):
                    held[g].remove(other)
                    held[g].append(expert)
                    return True
        return False

    for expert in case.activated:
        while not place(expert, set()):
            most += 1
            room = [x + 1 for x in room]
    return most


def check(case: Case, result: Result) -> None:
    """Assert what must hold of any answer: hosts are hosts, loads are counts, a_max is the optimum and proven."""
    owner: dict[int, tuple[int, int]] = {
        int(p): (e, g) for e, row in enumerate(case.phys_of) for g, p in enumerate(row) if p >= 0
    }
    chosen: dict[int, Any] = {}
    for logical, phys in zip(case.ids.ravel().tolist(), result.phys.ravel().tolist(), strict=True):
        if not 0 <= logical < len(case.replicas):
            assert phys == -1
            continue
        e, g = owner[phys]
        assert e == logical
        assert chosen.setdefault(e, g) == g, f"expert {e} has two replicas in one dispatch"
    load = np.bincount(list(chosen.values()), minlength=case.instances)
    assert load.tolist() == result.load.tolist()
    before = np.zeros(case.instances, dtype=int) if case.load0 is None else case.load0
    assert result.stats[1] == (load + before).max() == optimum(case)
    assert result.stats[0] == len(chosen)
    assert result.stats[3] == 1
