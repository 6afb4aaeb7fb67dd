"""Where each way sends a dispatch, compared as data."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from janus.core.exchange_routes import GATHERED_MOST_BYTES, MODES, Destination, destinations, gathers, leader
from janus.core.placement import Placement, static_placement


def placed(*nodes: str) -> Placement:
    instances = tuple(f"expert-{index}" for index in range(len(nodes)))
    return static_placement(num_layers=1, num_experts=8, instances=instances, nodes=nodes)


def test_direct_and_aggregated_go_to_every_instance_node_by_node() -> None:
    for mode in ("direct", "aggregated"):
        assert destinations(placed("x", "y", "x"), mode) == (
            Destination((0,), 0, ("expert-0",)),
            Destination((2,), 0, ("expert-2",)),
            Destination((1,), 1, ("expert-1",)),
        )


def test_two_phase_goes_to_one_relay_per_node_and_its_instances_take_turns() -> None:
    found = destinations(placed("x", "y", "x", "y"), "two-phase")
    assert found == (
        Destination((0, 2), 0, ("expert-0", "expert-2")),
        Destination((1, 3), 1, ("expert-1", "expert-3")),
    )
    assert [[to.relay(turn) for to in found] for turn in range(3)] == [
        ["expert-0", "expert-1"],
        ["expert-2", "expert-3"],
        ["expert-0", "expert-1"],
    ]


@given(nodes=st.lists(st.sampled_from("xyz"), min_size=1, max_size=8), turn=st.integers(0, 9))
def test_every_instance_is_in_one_destination_and_relays_are_members(nodes: list[str], turn: int) -> None:
    placement = placed(*nodes)
    for mode in MODES:
        found = destinations(placement, mode)
        assert sorted(i for to in found for i in to.instances) == list(range(len(nodes)))
        assert [to.group for to in found] == sorted(to.group for to in found)
        for to in found:
            assert to.relay(turn) in {placement.instances[i] for i in to.instances}
            assert {nodes[i] for i in to.instances} == {list(dict.fromkeys(nodes))[to.group]}
    assert len(destinations(placement, "two-phase")) == len(set(nodes))


@given(members=st.integers(1, 8), layers=st.integers(1, 40))
def test_members_take_turns_as_evenly_as_layers_allow(members: int, layers: int) -> None:
    names = [f"attention-{i}" for i in range(members)]
    turns = [leader(names, layer) for layer in range(layers)]
    counts = [turns.count(name) for name in names]
    assert max(counts) - min(counts) <= 1


@given(members=st.integers(1, 8), nbytes=st.integers(1, 2 << 20))
def test_only_several_gather_and_more_members_gather_no_less(members: int, nbytes: int) -> None:
    for mode in MODES[1:]:
        gathered = gathers(mode, members=members, batch_bytes=nbytes)
        assert not gathered or (members > 1 and nbytes <= GATHERED_MOST_BYTES)
        assert gathered <= gathers(mode, members=members + 1, batch_bytes=nbytes)
        assert gathered <= gathers(mode, members=members, batch_bytes=nbytes // 2)
    assert not gathers("direct", members=members, batch_bytes=nbytes)
