"""Placements: what is refused, what the tables say, and how the static one spreads experts."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus.core.placement import EMPTY, Placement, static_placement
from janus.core.placing.replicas import replica_counts
from janus.errors import ConfigError
from janus.messages import decode, encode
from janus.messages.control import LoadPlacement, PlacementTable


def names(count: int) -> tuple[str, ...]:
    return tuple(f"expert-{i}" for i in range(count))


def table(slots: list[list[list[int]]], **changes: object) -> PlacementTable:
    values: dict[str, object] = {"epoch": 1, "num_experts": 3, "instances": ["x", "y"], "slots": slots, **changes}
    return PlacementTable(**values)  # type: ignore[arg-type]


def test_tables_of_a_small_placement() -> None:
    placement = Placement.from_table(table([[[0, 2], [1, 0]], [[2, 1], [0, EMPTY]]]))
    assert (placement.num_layers, placement.num_instances, placement.slots_per_instance) == (2, 2, 2)
    assert placement.phys_to_logical.tolist() == [[0, 2, 1, 0], [2, 1, 0, EMPTY]]
    assert placement.replica_count.tolist() == [[2, 1, 1], [1, 1, 1]]
    assert placement.logical_to_phys.tolist() == [
        [[0, 3], [2, EMPTY], [1, EMPTY]],
        [[2, EMPTY], [1, EMPTY], [0, EMPTY]],
    ]
    assert [placement.hosts(0, expert) for expert in range(3)] == [(0, 1), (1,), (0,)]
    assert placement.replicas("y") == ((0, 1), (0,))
    assert placement.replicas("nobody") == ((), ())
    assert not placement.covered_by(frozenset({"x"}))
    assert placement.covered_by(frozenset({"x", "y"}))
    with pytest.raises(ValueError, match="read-only"):
        placement.phys_to_logical[0, 0] = 1


def test_what_is_left_without_an_instance_keeps_epoch_and_physical_ids() -> None:
    placement = Placement.from_table(table([[[0, 2, 1], [1, 0, 2]], [[2, 1, 0], [0, EMPTY, 2]]], nodes=["m", "n"]))
    assert placement.without(frozenset()) is placement
    assert placement.without(frozenset({"nobody"})) is placement
    left = placement.without(frozenset({"y", "nobody"}))
    assert left is not None
    assert (left.epoch, left.instances, left.nodes) == (1, ("x", "y"), ("m", "n"))
    assert left.slots == (((0, 2, 1), (EMPTY,) * 3), ((2, 1, 0), (EMPTY,) * 3))
    assert left.phys_to_logical.tolist() == [[0, 2, 1, *[EMPTY] * 3], [2, 1, 0, *[EMPTY] * 3]]
    assert left.replica_count.tolist() == [[1, 1, 1], [1, 1, 1]]
    # Layer 1 has expert 1 on x alone.
    assert placement.without(frozenset({"x"})) is None
    assert placement.without(frozenset({"x", "y"})) is None


@settings(max_examples=60, deadline=None)
@given(experts=st.integers(1, 12), instances=st.integers(1, 6), extra=st.integers(0, 6), data=st.data())
def test_without_is_there_exactly_when_the_others_cover_every_expert(
    experts: int, instances: int, extra: int, data: st.DataObject
) -> None:
    placement = static_placement(
        num_layers=2,
        num_experts=experts,
        instances=names(instances),
        slots_per_instance=-(-experts // instances) + extra,
    )
    lost = frozenset(data.draw(st.sets(st.sampled_from(names(instances)))))
    left = placement.without(lost)
    assert (left is not None) == placement.covered_by(frozenset(names(instances)) - lost)
    if left is not None:
        for name in names(instances):
            assert left.replicas(name) == (((),) * 2 if name in lost else placement.replicas(name))
        kept = np.isin(
            np.arange(left.phys_to_logical.shape[1]) // left.slots_per_instance,
            [index for index, name in enumerate(names(instances)) if name not in lost],
        )
        assert (left.phys_to_logical[:, kept] == placement.phys_to_logical[:, kept]).all()
        assert (left.phys_to_logical[:, ~kept] == EMPTY).all()


def test_first_replicas_sit_in_the_lowest_slots() -> None:
    placement = Placement.from_table(table([[[0, 1, 2], [1, 2, 0]]]))
    assert placement.logical_to_phys[0].tolist() == [[0, 5], [3, 1], [4, 2]]


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (table([[[0], [1]]]), "layer 0 has no replica of expert 2"),
        (table([[[0, 1], [2, 2]]]), "layer 0 has expert 2 twice on y"),
        (table([[[0, 1], [2, 3]]]), "layer 0 has expert 3, outside 0..2"),
        (table([[[0, 1], [2, -2]]]), "layer 0 has expert -2, outside 0..2"),
        (table([[[0, 1], [2]]]), "same instances and slots"),
        (table([[[0, 1, 2]]]), "slots have the shape (1, 1, 3)"),
        (table([[[], []]]), "slots have the shape (1, 2, 0)"),
        (table([[[0, 1], [2, 2**70]]]), "same instances and slots"),
        (table([]), "each must be >= 1"),
        (table([[[0, 1], [2, 0]]], epoch=0), "each must be >= 1"),
        (table([[[0, 1], [2, 0]]], num_experts=0), "each must be >= 1"),
        (table([[[0, 1], [2, 0]]], instances=["x", "x"]), "must be different"),
        (table([[[0, 1], [2, 0]]], instances=["x", ""]), "not empty"),
    ],
)
def test_a_table_that_is_no_placement_is_refused(broken: PlacementTable, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Placement.from_table(broken)


def test_static_deals_round_robin_and_rotates_by_layer() -> None:
    placement = static_placement(num_layers=2, num_experts=5, instances=names(2))
    # Layer 0: 0, 2, 4 and 1, 3; the slot left over gets another replica of the first of the equally busy experts.
    assert placement.slots == (((0, 2, 4), (1, 3, 0)), ((1, 3, 0), (0, 2, 4)))
    assert placement.slots_per_instance == 3


def test_spare_slots_go_to_the_largest_load_per_replica() -> None:
    placement = static_placement(
        num_layers=1,
        num_experts=3,
        instances=names(3),
        slots_per_instance=2,
        activations=np.array([[9.0, 4.0, 1.0]]),
    )
    # c/R: 9, 4, 1 -> expert 0 (4.5) -> expert 0 (3) -> expert 1.
    assert placement.replica_count.tolist() == [[3, 2, 1]]


@settings(max_examples=60, deadline=None)
@given(
    loads=st.lists(st.integers(1, 50), min_size=1, max_size=12), instances=st.integers(1, 5), extra=st.integers(0, 30)
)
def test_replica_counts_follow_the_rule(loads: list[int], instances: int, extra: int) -> None:
    counts = [1] * len(loads)
    for _ in range(extra):
        open_ones = [e for e in range(len(loads)) if counts[e] < instances]
        if open_ones:
            counts[max(open_ones, key=lambda e: (loads[e] / counts[e], -e))] += 1
    got = replica_counts(np.array(loads, dtype=np.float64), total_slots=len(loads) + extra, num_instances=instances)
    assert got.tolist() == counts


def test_replicas_even_out_the_load() -> None:
    activations = 1000.0 / np.arange(1, 33)[None]  # skewed, as natural routing is
    even = static_placement(num_layers=1, num_experts=32, instances=names(4), activations=activations)
    spare = static_placement(
        num_layers=1, num_experts=32, instances=names(4), slots_per_instance=10, activations=activations
    )

    def busiest(placement: Placement) -> float:
        share = activations[0] / placement.replica_count[0]
        return max(sum(share[e] for e in held if e != EMPTY) for held in placement.slots[0])

    mean = activations.sum() / 4
    assert busiest(even) > 1.4 * mean
    assert busiest(spare) < 1.05 * mean


def test_too_few_slots_are_refused_with_the_numbers() -> None:
    with pytest.raises(ConfigError, match=r"2 expert instances with 3 slots .* 6 experts, the model has 8") as caught:
        static_placement(num_layers=1, num_experts=8, instances=names(2), slots_per_instance=3)
    assert "at least 4 slots" in caught.value.remedy
    assert "at least 3 instances" in caught.value.remedy
    with pytest.raises(ConfigError, match="at least one"):
        static_placement(num_layers=1, num_experts=8, instances=())
    with pytest.raises(ConfigError, match="activations"):
        static_placement(num_layers=1, num_experts=8, instances=names(2), activations=np.ones((2, 8)))


@settings(max_examples=60, deadline=None)
@given(
    layers=st.integers(1, 3),
    experts=st.integers(1, 24),
    instances=st.integers(1, 9),
    extra=st.integers(0, 6),
    data=st.data(),
)
def test_static_placements_are_complete_even_and_survive_the_wire(
    layers: int, experts: int, instances: int, extra: int, data: st.DataObject
) -> None:
    slots = -(-experts // instances) + extra
    counts = np.array(
        data.draw(
            st.lists(st.lists(st.integers(0, 50), min_size=experts, max_size=experts), min_size=layers, max_size=layers)
        ),
        dtype=np.float64,
    )
    arguments = {"num_layers": layers, "num_experts": experts, "instances": names(instances), "epoch": 7}
    placement = static_placement(**arguments, slots_per_instance=slots, activations=counts)  # type: ignore[arg-type]
    assert placement == static_placement(**arguments, slots_per_instance=slots, activations=counts)  # type: ignore[arg-type]

    sent = decode(encode(LoadPlacement(table=placement.to_table())))
    assert isinstance(sent, LoadPlacement)
    assert Placement.from_table(sent.table) == placement

    for layer in range(layers):
        per_instance = [[e for e in held if e != EMPTY] for held in placement.slots[layer]]
        assert {e for held in per_instance for e in held} == set(range(experts))
        # A slot is empty only where every expert is already.
        assert all(len(held) == min(slots, experts) for held in per_instance)
        for expert in range(experts):
            phys = placement.logical_to_phys[layer, expert]
            phys = phys[phys != EMPTY]
            assert len(phys) == placement.replica_count[layer, expert]
            assert (placement.phys_to_logical[layer, phys] == expert).all()
            assert sorted(set((phys // slots).tolist())) == list(placement.hosts(layer, expert))
            assert all(expert in placement.slots[layer][host] for host in placement.hosts(layer, expert))
    survivors = data.draw(st.sets(st.sampled_from(names(instances))))
    kept = [names(instances).index(name) for name in survivors]
    covered = all(
        {e for index in kept for e in placement.slots[layer][index]} >= set(range(experts)) for layer in range(layers)
    )
    assert placement.covered_by(frozenset(survivors)) == covered


@settings(max_examples=50, deadline=None)
@given(experts=st.integers(1, 64), instances=st.integers(1, 16), layer_count=st.integers(1, 16))
def test_first_replicas_are_spread_evenly(experts: int, instances: int, layer_count: int) -> None:
    placement = static_placement(num_layers=layer_count, num_experts=experts, instances=names(instances))
    for layer in range(layer_count):
        firsts = placement.logical_to_phys[layer, :, 0] // placement.slots_per_instance
        assert np.bincount(firsts, minlength=instances).max() <= -(-experts // instances)
