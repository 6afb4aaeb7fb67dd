"""The estimate of a_max beside the schedulers that it stands for, and the paper's bound."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus.core.placing import POLICIES
from janus.core.placing.contract import PlacingRequest
from janus.core.placing.objective import (
    Batches,
    a_max_bound,
    coactivation_cost,
    estimate_a_max,
    token_imbalance,
)
from janus.core.placing.problem import as_holding
from janus.core.scheduling.aebs import aebs, aebs_greedy
from tests.core.placing.drawn import placed, requests, routed
from tests.core.placing.test_policies import hosts


def test_token_imbalance_is_one_when_every_host_has_its_share() -> None:
    holding = as_holding(((0, 1), (1, 2)), 3)
    even = np.array([3.0, 2.0, 3.0])
    assert token_imbalance(holding, even, np.ones(2)) == 1.0
    assert token_imbalance(holding, np.array([4.0, 2.0, 2.0]), np.ones(2)) == pytest.approx(5 / 4)
    # The first host is as fast as three: 4 of 8 tokens for 3/4 of the speed, and the other twice what it should.
    assert token_imbalance(holding, even, np.array([3.0, 1.0])) == pytest.approx(2.0)


def test_coactivation_cost_counts_each_pair_once_by_speed_squared() -> None:
    together = np.array([[0, 5, 1], [5, 0, 2], [1, 2, 0]], dtype=np.float64)
    holding = as_holding(((0, 1, 2), (1, 2)), 3)
    assert coactivation_cost(holding, together, np.ones(2)) == 8
    assert coactivation_cost(holding, together, np.array([4.0, 1.0])) == 2


@settings(max_examples=60, deadline=None, derandomize=True)  # no greedy choice is near the least without exception
@given(request=requests(), batch=st.integers(1, 12), seed=st.integers(0, 9))
def test_the_estimate_is_what_a_schedule_reaches_and_near_the_least(
    request: PlacingRequest, batch: int, seed: int
) -> None:
    """For each batch: at least what AEBS proves to be the least, and at most one above."""

    held = POLICIES["static"](request)
    placement = placed(held, request.hosts, request.num_experts)
    activity = routed(np.random.default_rng(seed), request.num_layers, request.num_experts, min(3, request.num_experts))
    assert activity.trace is not None
    batches = Batches(activity.trace[0], request.num_experts, [batch], 8, seed)
    times = batches.times(as_holding(held[0], request.num_experts), np.ones(len(request.hosts)))
    for active, loads in zip(batches.active, times, strict=True):
        assert loads.sum() == active.sum()  # every activated expert on one host
        best = aebs(np.flatnonzero(active)[:, None].astype(np.int32), placement, 0)
        assert best.proven
        assert best.a_max <= loads.max() <= best.a_max + 1


def test_the_estimate_is_within_two_percent_of_aebs_and_below_algorithm_1() -> None:
    activity = routed(np.random.default_rng(1), 1, 64, 4, tokens=512)
    assert activity.trace is not None
    held = POLICIES["static"](_request(64, 8, 12))
    placement = placed(held, hosts(8), 64)
    holding = as_holding(held[0], 64)
    batches = Batches(activity.trace[0], 64, [8, 32], 64, 0)
    found = batches.mean_a_max(holding, np.ones(8))
    dispatches = [np.flatnonzero(active)[:, None].astype(np.int32) for active in batches.active]
    least = np.mean([aebs(ids, placement, 0).a_max for ids in dispatches])
    greedy = np.mean([aebs_greedy(ids, placement, 0).a_max for ids in dispatches])
    assert least <= found <= 1.02 * least
    assert found <= greedy


def _request(experts: int, count: int, fill: int) -> PlacingRequest:

    return PlacingRequest(num_layers=1, num_experts=experts, hosts=hosts(count), fill=fill)


def test_a_fast_host_is_given_more_of_the_replicated_experts() -> None:
    trace = np.arange(8, dtype=np.uint16)[None, :, None]
    held = ((tuple(range(8)), tuple(range(8))),)
    # Everything is active, and either host has it all: 6 and 2 take the same time at speeds 3 and 1.
    assert estimate_a_max(held, trace.repeat(16, axis=1), batch=512, samples=4, speeds=[3.0, 1.0]).tolist() == [2.0]
    assert estimate_a_max(held, trace.repeat(16, axis=1), batch=512, samples=4).tolist() == [4.0]


@pytest.mark.parametrize("batch", [1, 4, 16, 64])
def test_the_papers_bound_holds_and_the_estimate_is_the_same_for_a_placement_and_what_it_holds(batch: int) -> None:
    activity = routed(np.random.default_rng(7), 2, 48, 4, tokens=512)
    assert activity.trace is not None
    held = tuple(POLICIES["static"](_request(48, 6, 10))[0] for _ in range(2))
    placement = placed(held, hosts(6), 48)
    found = estimate_a_max(held, activity.trace, batch=batch)
    assert (found == estimate_a_max(placement, activity.trace, batch=batch)).all()
    assert (found <= a_max_bound(placement, activity.trace, batch=batch)).all()
    assert (found >= 1).all()
