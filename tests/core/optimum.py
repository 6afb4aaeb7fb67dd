"""The least possible a_max, found another way than the schedulers do: by matching experts to places, one at a time."""

from __future__ import annotations

from collections.abc import Sequence


def least_a_max(hosts: Sequence[Sequence[int]], load0: Sequence[int]) -> int:
    """Return the least maximum of ``load0`` plus experts, each of which goes to one of its hosts."""
    bound = max(load0)
    while not _fits(hosts, [bound - each for each in load0]):
        bound += 1
    return bound


def _fits(hosts: Sequence[Sequence[int]], room: list[int]) -> bool:
    """Whether every expert finds a place (Kuhn's algorithm for matching, with several places per instance)."""
    taken: list[list[int]] = [[] for _ in room]

    def place(expert: int, tried: set[int]) -> bool:
        for instance in hosts[expert]:
            if instance in tried:
                continue
            tried.add(instance)
            if len(taken[instance]) < room[instance]:
                taken[instance].append(expert)
                return True
            for index, other in enumerate(taken[instance]):
                if place(other, tried):
                    taken[instance][index] = expert
                    return True
        return False

    return all(place(expert, set()) for expert in range(len(hosts)))
