"""The cost model and the choice: right where it must be, and never far from the better way for long."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus.core.exchange_cost import DispatchShape, LinkCost, ModeChooser, predict
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
    large = shape(members=2, sources=4, nodes=2, per_node=2, rows=128)
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


@settings(max_examples=60, deadline=None)
@given(
    actual=st.fixed_dictionaries({mode: st.floats(1e-4, 2e-3) for mode in MODES}),
    predicted=st.fixed_dictionaries({mode: st.floats(2e-4, 5e-4) for mode in MODES}),
    seed=st.integers(0, 99),
)
def test_it_ends_at_the_better_way_and_looking_around_is_cheap(
    actual: dict[Mode, float], predicted: dict[Mode, float], seed: int
) -> None:
    chooser, noise = ModeChooser(), random.Random(seed)
    chosen: list[Mode] = []
    for _ in range(6000):
        mode = chooser.choose(5, predicted)
        chosen.append(mode)
        took = actual[mode] * noise.uniform(0.95, 1.05)
        chooser.observed(5, mode, predicted_s=predicted[mode], actual_s=took)
    late = chosen[3000:]
    best = min(actual.values())
    usual = max(set(late), key=late.count)
    assert actual[usual] <= 1.12 * best, "the way in use is the best, or as good as the best"
    slow = sum(actual[mode] > 1.12 * best for mode in late)
    assert slow <= 0.03 * len(late), "hardly a dispatch goes a slower way"


def test_a_way_that_becomes_better_is_found() -> None:
    chooser = ModeChooser()
    predicted: dict[Mode, float] = {"direct": 1e-3, "two-phase": 1e-3}
    actual: dict[Mode, float] = {"direct": 1e-3, "two-phase": 2e-3}
    last: list[Mode] = []
    for step in range(20_000):
        if step == 2000:
            actual = {"direct": 1e-3, "two-phase": 0.4e-3}
        mode = chooser.choose(3, predicted)
        chooser.observed(3, mode, predicted_s=predicted[mode], actual_s=actual[mode])
        last = [*last[-99:], mode]
    assert last.count("two-phase") > 90


def test_a_single_outlier_changes_nothing() -> None:
    chooser = ModeChooser()
    predicted: dict[Mode, float] = {"direct": 1e-3, "two-phase": 1.2e-3}
    for step in range(200):
        mode = chooser.choose(1, predicted)
        took = 50e-3 if step == 100 else predicted[mode]
        chooser.observed(1, mode, predicted_s=predicted[mode], actual_s=took)
    assert chooser.choose(1, predicted) == "direct"


def test_one_possible_way_is_taken() -> None:
    assert ModeChooser().choose(0, {"direct": 1.0}) == "direct"
