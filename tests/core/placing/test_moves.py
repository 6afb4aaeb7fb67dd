"""When a better placement is worth its loads."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from janus.core.placing.contract import Activity, PlacingRequest
from janus.core.placing.moves import Verdict, replicas_to_load, worth_moving
from tests.core.placing.drawn import placed
from tests.core.placing.test_policies import hosts

#: Each token activates both experts of a pair; IN_PAIRS has the pairs together, SPLIT each on both hosts.
TRACE = np.array([[[0, 1], [2, 3], [4, 5], [6, 7]] * 16], dtype=np.uint16)
ACTIVITY = Activity(counts=np.full((1, 8), 16.0), trace=TRACE)
IN_PAIRS = (((0, 1), (2, 3), (4, 5), (6, 7)),)
SPLIT = (((0, 2), (1, 3), (4, 6), (5, 7)),)
REQUEST = PlacingRequest(
    num_layers=1, num_experts=8, hosts=hosts(4, 2), activity=ACTIVITY, current=placed(IN_PAIRS, hosts(4, 2), 8)
)


def test_replicas_to_load_are_those_that_a_host_lacks() -> None:
    assert replicas_to_load(REQUEST.current, SPLIT, [host.name for host in hosts(4)]) == {
        f"expert-{number}": 1 for number in range(4)
    }
    assert replicas_to_load(REQUEST.current, IN_PAIRS, [host.name for host in hosts(4)]) == {}
    assert replicas_to_load(None, (((0,), (1, 2)),), ["x", "y"]) == {"x": 1, "y": 2}


def test_a_gain_that_outweighs_its_loads_is_worth_the_move() -> None:
    verdict = worth_moving(REQUEST, SPLIT, ACTIVITY, bytes_per_expert=1_000_000, batch=1)
    assert verdict.move
    assert (verdict.a_max_before, verdict.a_max_after) == (2.0, 1.0)
    assert (sum(verdict.loads.values()), verdict.bytes) == (4, 4_000_000)
    assert "a_max 2.00 -> 1.00 (50.0% less), 4.0 MB" in verdict.reason
    back = replace(REQUEST, current=placed(SPLIT, REQUEST.hosts, 8))
    assert not worth_moving(back, IN_PAIRS, ACTIVITY, bytes_per_expert=1, batch=1).move


def test_loading_must_be_over_while_the_gain_lasts() -> None:
    """Half of a_max is saved in what is left of 100 s, loading costs a tenth of its own time: at most 83.3 s."""

    def move(loading_s: float) -> Verdict:
        return worth_moving(
            REQUEST, SPLIT, ACTIVITY, bytes_per_expert=1000, batch=1, load_rate=1000 / loading_s, horizon_s=100.0
        )

    assert move(83.0).move
    assert not move(84.0).move
    assert "loading costs more than 100 s of the gain" in move(84.0).reason


def test_a_small_gain_moves_nothing() -> None:
    """A batch of many activates every expert, wherever it is."""
    verdict = worth_moving(REQUEST, SPLIT, ACTIVITY, bytes_per_expert=1, batch=64)
    assert not verdict.move
    assert "less than the least gain" in verdict.reason
    assert worth_moving(REQUEST, SPLIT, ACTIVITY, bytes_per_expert=1, batch=1, least_gain=0.51).move is False
    assert worth_moving(REQUEST, SPLIT, ACTIVITY, bytes_per_expert=1, batch=1, least_gain=0.5).move is True


def test_without_statistics_or_change_there_is_no_reason_to_move() -> None:
    for nothing in (None, Activity(counts=ACTIVITY.counts), replace(ACTIVITY, trace=TRACE[:, :0])):
        verdict = worth_moving(REQUEST, SPLIT, nothing, bytes_per_expert=1)
        assert not verdict.move
        assert (verdict.a_max_before, verdict.a_max_after) == (0.0, 0.0)
        assert "no statistics" in verdict.reason
    assert not worth_moving(REQUEST, IN_PAIRS, ACTIVITY, bytes_per_expert=1).move


def test_other_instances_leave_no_choice() -> None:
    for request in (replace(REQUEST, current=None), replace(REQUEST, hosts=hosts(5, 2))):
        target = tuple((*layer, ()) for layer in SPLIT)[:1] if len(request.hosts) == 5 else SPLIT
        verdict = worth_moving(request, target, None, bytes_per_expert=10)
        assert verdict.move
        assert verdict.bytes == 10 * sum(verdict.loads.values()) > 0
