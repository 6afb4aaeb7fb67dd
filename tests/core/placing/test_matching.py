"""Contents of like hosts are exchanged so that most of what is in force stays."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from janus.core.placing.matching import matched
from janus.core.placing.problem import Holding, LayerProblem, as_holding


def problem(
    held: Holding, nodes: list[int], quotas: list[int] | None = None, speeds: list[float] | None = None
) -> LayerProblem:
    experts = held.shape[1]
    return LayerProblem(
        layer=0,
        num_layers=1,
        quotas=held.sum(axis=1) if quotas is None else np.array(quotas),
        speeds=np.ones(len(held)) if speeds is None else np.array(speeds),
        nodes=np.array(nodes),
        loads=np.ones(experts),
        coactivation=np.zeros((experts, experts)),
        trace=None,
        held=held,
        least=1,
        in_place=False,
    )


def test_a_permutation_of_what_is_in_force_is_undone() -> None:
    held = as_holding(((0, 1), (2, 3), (4, 5), (6, 7)), 8)
    for nodes in ([0, 0, 0, 0], [0, 1, 2, 3], [0, 0, 1, 1]):
        assert (matched(problem(held, nodes), held[[2, 3, 1, 0]]) == held).all()


def test_hosts_stay_together_that_share_a_node() -> None:
    held = as_holding(((0, 1), (2, 3), (4, 5), (6, 7)), 8)
    apart = as_holding(((4, 5), (0, 1), (6, 7), (2, 3)), 8)
    # Nodes (0, 1) and (2, 3): each has a half of what either target node has, and is matched whole.
    found = matched(problem(held, [0, 0, 1, 1]), apart)
    assert {tuple(np.flatnonzero(host)) for host in found[:2]} in ({(4, 5), (0, 1)}, {(6, 7), (2, 3)})
    assert int((found & held).sum()) == 4


def test_hosts_of_other_quota_or_speed_are_not_exchanged() -> None:
    held = as_holding(((0,), (1, 2)), 3)
    assert (matched(problem(held, [0, 0]), as_holding(((1,), (0, 2)), 3)) == as_holding(((1,), (0, 2)), 3)).all()
    held = as_holding(((0, 1), (2, 3)), 4)
    other = held[::-1].copy()
    assert (matched(problem(held, [0, 0], speeds=[1.0, 2.0]), other) == other).all()


@settings(max_examples=100, deadline=None)
@given(data=st.data(), count=st.integers(1, 6), experts=st.integers(1, 8))
def test_every_content_goes_to_one_like_host_and_replicas_on_different_nodes_stay_so(
    data: st.DataObject, count: int, experts: int
) -> None:
    drawn = st.lists(st.lists(st.booleans(), min_size=experts, max_size=experts), min_size=count, max_size=count)
    held, holding = (np.array(data.draw(drawn), dtype=bool) for _ in range(2))
    nodes = [data.draw(st.integers(0, 2)) for _ in range(count)]
    nodes = [sorted(set(nodes)).index(node) for node in nodes]
    speeds = [data.draw(st.sampled_from([1.0, 2.0])) for _ in range(count)]
    layer = problem(held, nodes, quotas=[4] * count, speeds=speeds)
    found = matched(layer, holding)
    assert sorted(map(tuple, found.tolist())) == sorted(map(tuple, holding.tolist()))
    for speed in (1.0, 2.0):
        of_it = np.array(speeds) == speed
        assert sorted(map(tuple, found[of_it].tolist())) == sorted(map(tuple, holding[of_it].tolist()))

    def spread(each: Holding) -> list[list[int]]:
        """For each expert, how many replicas each node has; the names of the nodes do not matter."""
        return [
            sorted(int(each[np.array(nodes) == node, expert].sum()) for node in set(nodes)) for expert in range(experts)
        ]

    assert spread(found) == spread(holding)
