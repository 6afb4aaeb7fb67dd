"""Which host takes which part of a target, so that most of what is in force stays."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import numpy.typing as npt

from janus.core.placing.problem import Holding, LayerProblem


def matched(problem: LayerProblem, holding: Holding) -> Holding:
    """Return ``holding`` with the contents of like hosts exchanged so that most of what is in force stays.

    Hosts are alike if quota and speed are, nodes if their hosts are. Nodes are exchanged whole and hosts within their
    node, so that replicas which are on different nodes stay so.
    """
    kinds = list(zip(problem.quotas.tolist(), problem.speeds.tolist(), strict=True))
    hosts_of = [np.flatnonzero(problem.nodes == node).tolist() for node in range(int(problem.nodes.max()) + 1)]
    contents, held = (np.array([each[hosts].any(axis=0) for hosts in hosts_of]) for each in (holding, problem.held))
    nodes = _pairs(contents, held, [tuple(sorted(kinds[host] for host in hosts)) for hosts in hosts_of])
    result = np.empty_like(holding)
    for content, place in enumerate(nodes):
        # In the order of their kinds, the hosts of both nodes can be compared one by one.
        sources, targets = (sorted(hosts_of[node], key=kinds.__getitem__) for node in (content, place))
        goes = _pairs(holding[sources], problem.held[targets], [kinds[host] for host in sources])
        for source, target in zip(sources, goes, strict=True):
            result[targets[target]] = holding[source]
    return result


def _pairs(contents: npt.NDArray[np.bool_], held: npt.NDArray[np.bool_], kinds: Sequence[Hashable]) -> list[int]:
    """Return which place each of the contents goes to, of the same kind: what has most in common first, greedily.

    ``contents`` bool[N, E], ``held`` bool[N, E] of the places; ``kinds`` of both.
    """
    goes = [-1] * len(kinds)
    for kind in dict.fromkeys(kinds):
        members = [index for index, each in enumerate(kinds) if each == kind]
        common = contents[members].astype(np.float32) @ held[members].astype(np.float32).T
        free = set(range(len(members)))
        order = np.argsort(-common, axis=None, kind="stable")[: np.count_nonzero(common)]
        for content, place in zip(*(each.tolist() for each in np.divmod(order, len(members))), strict=True):
            if place in free and goes[members[content]] < 0:
                goes[members[content]] = members[place]
                free.discard(place)
        rest = iter(sorted(free))
        for content in members:
            if goes[content] < 0:
                goes[content] = members[next(rest)]
    return goes
