"""The cost model: right where it must be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from janus.core.exchange_cost import DispatchShape, LinkCost, predict
from janus.core.exchange_routes import MODES, Mode

INTER = LinkCost(message_s=40e-6, latency_s=60e-6, byte_s=1e-9)
INTRA = LinkCost(message_s=10e-6, latency_s=10e-6, byte_s=0.1e-9)


def shape(
    *, members: int, sources: int, nodes: int, per_node: int, rows: int = 16, row_bytes: int = 4096
) -> DispatchShape:
    instances = nodes * per_node
    return DispatchShape(
        instances=instances,
        instance_bytes=instances * rows * row_bytes,
        instance_answer_bytes=instances * rows * row_bytes,
        nodes=nodes,
        node_bytes=nodes * rows * row_bytes,
        node_answer_bytes=nodes * rows * row_bytes,
        batch_bytes=rows * row_bytes,
        largest_node=per_node,
        members=members,
        sources=sources,
    )


def cost(mode: Mode, at: DispatchShape) -> float:
    return predict(mode, at, inter=INTER, intra=INTRA)


def test_one_of_each_has_nothing_to_gain() -> None:
    alone = shape(members=1, sources=1, nodes=1, per_node=1)
    assert cost("direct", alone) == pytest.approx(cost("two-phase", alone)) == pytest.approx(cost("aggregated", alone))


def test_many_instances_on_few_nodes_gain_from_two_phases() -> None:
    large = shape(members=8, sources=16, nodes=2, per_node=8, rows=4)
    assert cost("two-phase", large) < cost("aggregated", large) < cost("direct", large)


def test_large_batches_are_not_gathered_and_gain_from_the_relay_all_the_same() -> None:
    large = shape(members=2, sources=4, nodes=2, per_node=2, rows=2048)
    assert cost("two-phase", large) < cost("direct", large) == pytest.approx(cost("aggregated", large))


def test_many_nodes_of_one_instance_gain_nothing_from_a_relay() -> None:
    flat = shape(members=1, sources=8, nodes=8, per_node=1)
    assert cost("two-phase", flat) == pytest.approx(cost("direct", flat))


@given(
    members=st.integers(1, 8),
    source_nodes=st.integers(1, 4),
    nodes=st.integers(1, 4),
    per_node=st.integers(1, 8),
    rows=st.integers(1, 512),
)
def test_more_bytes_or_slower_links_never_cost_less(
    members: int, source_nodes: int, nodes: int, per_node: int, rows: int
) -> None:
    sources = members * source_nodes
    small = shape(members=members, sources=sources, nodes=nodes, per_node=per_node, rows=rows)
    large = shape(members=members, sources=sources, nodes=nodes, per_node=per_node, rows=2 * rows)
    slow = LinkCost(message_s=2 * INTER.message_s, latency_s=2 * INTER.latency_s, byte_s=2 * INTER.byte_s)
    for mode in MODES:
        assert 0 < cost(mode, small) < cost(mode, large)
        assert cost(mode, small) < predict(mode, small, inter=slow, intra=INTRA)
