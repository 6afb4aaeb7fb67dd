"""What no scheduler can beat, found without any of the schedulers' code."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence


def least_a_max(hosts: Sequence[Sequence[int]], instances: int) -> int:
    """Return the least a_max of experts that each go to one of their ``hosts``.

    The smallest room per instance that all experts fit in, by augmenting paths in the bipartite graph of experts and
    places (Kuhn's algorithm for matching); nothing is balanced on the way, only the number of places grows.
    """
    room = -(-len(hosts) // instances)
    while not _fits(hosts, instances, room):
        room += 1
    return room


def _fits(hosts: Sequence[Sequence[int]], instances: int, room: int) -> bool:
    held: list[list[int]] = [[] for _ in range(instances)]

    def place(expert: int, tried: set[int]) -> bool:
        for instance in hosts[expert]:
            if instance not in tried and len(held[instance]) < room:
                held[instance].append(expert)
                return True
        for instance in hosts[expert]:
            if instance in tried:
                continue
            tried.add(instance)
            for index, other in enumerate(held[instance]):
                if place(other, tried):
                    held[instance][index] = expert
                    return True
        return False

    return all(place(expert, set()) for expert in range(len(hosts)))


def least_imbalance(hosts: Sequence[Sequence[int]], chosen: Sequence[int], instances: int) -> int:
    """Return the least (max - min) of experts per instance that any choice of hosts has.

    Starts at ``chosen``, the host of each expert, and shifts along paths that end two below where they begin until
    there is none from any instance. Then the loads are the most even there are, in the maximum as in the minimum
    (Harvey, Ladner, Lovasz, Tamir 2006 for the maximum; Frank and Murota, Decreasing minimization on M-convex sets,
    for both).
    """
    host, load = list(chosen), [0] * instances
    for instance in host:
        load[instance] += 1
    while any(_shift(source, hosts, host, load) for source in range(instances)):
        pass
    return max(load) - min(load)


def _shift(source: int, hosts: Sequence[Sequence[int]], host: list[int], load: list[int]) -> bool:
    """Move one expert off ``source`` along a shortest path to an instance with two fewer; False when there is none."""
    on: list[list[int]] = [[] for _ in load]
    for expert, instance in enumerate(host):
        on[instance].append(expert)
    came_by: dict[int, int] = {source: -1}
    queue = deque([source])
    while queue:
        at = queue.popleft()
        if load[at] <= load[source] - 2:
            load[at] += 1
            load[source] -= 1
            while at != source:
                expert = came_by[at]
                at, host[expert] = host[expert], at
            return True
        for expert in on[at]:
            for instance in hosts[expert]:
                if instance not in came_by:
                    came_by[instance] = expert
                    queue.append(instance)
    return False
