"""What every policy keeps, and what each is for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus.core.placement import static_placement
from janus.core.placing import POLICIES
from janus.core.placing.contract import Activity, Held, Host, PlacingPolicy, PlacingRequest
from janus.core.placing.objective import coactivation_cost, estimate_a_max, token_imbalance
from janus.core.placing.policies.activation_aware import judge
from janus.core.placing.problem import LayerProblem, as_holding, problems
from janus.core.placing.quotas import quotas
from janus.errors import ConfigError
from tests.core.placing.drawn import placed, requests, routed

NAMES = sorted(POLICIES)


def hosts(count: int, capacity: int = 64, nodes: int = 1) -> tuple[Host, ...]:
    return tuple(Host(name=f"expert-{i}", node=f"node-{i % nodes}", capacity=capacity) for i in range(count))


def check(request: PlacingRequest, held: Held) -> None:
    """Assert what the contract says."""
    assert len(held) == request.num_layers
    for layer in held:
        assert len(layer) == len(request.hosts)
        assert {expert for each in layer for expert in each} == set(range(request.num_experts))
        for each, quota in zip(layer, quotas(request), strict=True):
            assert list(each) == sorted(set(each))
            assert len(each) == quota


def score(name: str, problem: LayerProblem, layer: tuple[tuple[int, ...], ...]) -> float:
    """The objective that a policy states as its own."""
    holding = as_holding(layer, len(problem.loads))
    batches = judge(problem)
    if name == "static":
        return 0.0
    if name == "eplb":
        return token_imbalance(holding, problem.loads, problem.speeds)
    if batches is not None:
        return batches.mean_a_max(holding, problem.speeds)
    return coactivation_cost(holding, problem.coactivation, problem.speeds)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_target_places_every_expert_fills_every_quota_and_is_deterministic(
    name: str, data: st.DataObject
) -> None:
    before = data.draw(requests())
    start = POLICIES[data.draw(st.sampled_from(NAMES))](before)
    check(before, start)
    request = data.draw(requests(current=placed(start, before.hosts, before.num_experts), like=before))
    held = POLICIES[name](request)
    check(request, held)
    assert POLICIES[name](request) == held


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_target_is_worse_than_what_it_replaces(name: str, data: st.DataObject) -> None:
    before = data.draw(requests())
    current = placed(POLICIES[data.draw(st.sampled_from(NAMES))](before), before.hosts, before.num_experts)
    order = data.draw(st.permutations(before.hosts))
    random = np.random.default_rng(data.draw(st.integers(0, 2**16)))
    now = routed(random, before.num_layers, before.num_experts, min(2, before.num_experts))
    request = replace(before, hosts=tuple(order), current=current, activity=data.draw(st.sampled_from([None, now])))
    held = POLICIES[name](request)
    in_force = tuple(zip(*(current.replicas(host.name) for host in order), strict=True))
    if request.activity is None:
        assert held == in_force
    for problem, new, old in zip(problems(request), held, in_force, strict=True):
        assert problem.in_place
        assert score(name, problem, new) <= score(name, problem, old)


@pytest.mark.parametrize("name", NAMES)
def test_without_statistics_a_join_and_a_leave_move_as_little_as_they_can(name: str) -> None:
    policy = POLICIES[name]
    request = PlacingRequest(num_layers=3, num_experts=16, hosts=hosts(4))
    first = policy(request)
    assert [[len(each) for each in layer] for layer in first] == [[4] * 4] * 3
    current = placed(first, request.hosts, 16)

    joined = policy(replace(request, hosts=hosts(5), current=current))
    assert [[len(each) for each in layer] for layer in joined] == [[4] * 5] * 3  # 16 experts, 20 slots
    assert [layer[:4] for layer in joined] == list(first)

    left = policy(replace(request, hosts=hosts(3), current=current))  # 18 slots
    for before, after in zip(first, left, strict=True):
        loads = [set(new) - set(old) for old, new in zip(before, after[:3], strict=False)]
        assert set(before[3]) <= set.union(*loads)
        assert sum(map(len, loads)) == 3 * 6 - 3 * 4
        assert all(set(old) <= set(new) for old, new in zip(before, after, strict=False))


def test_static_is_the_static_placement_where_nothing_is_in_force() -> None:
    counts = np.random.default_rng(5).integers(0, 99, (3, 10)).astype(np.float64)
    placement = static_placement(
        num_layers=3,
        num_experts=10,
        instances=tuple(host.name for host in hosts(4)),
        slots_per_instance=4,
        activations=counts,
    )
    held = POLICIES["static"](
        PlacingRequest(num_layers=3, num_experts=10, hosts=hosts(4), fill=4, activity=Activity(counts=counts))
    )
    assert held == tuple(zip(*(placement.replicas(host.name) for host in hosts(4)), strict=True))


@pytest.mark.parametrize("name", ["eplb", "activation-aware"])
def test_load_that_changes_is_followed_and_load_that_does_not_changes_nothing(name: str) -> None:
    random = np.random.default_rng(3)
    request = PlacingRequest(num_layers=2, num_experts=24, hosts=hosts(4), activity=routed(random, 2, 24, 4))
    held = POLICIES[name](request)
    current = placed(held, request.hosts, 24)
    assert POLICIES[name](replace(request, current=current)) == held
    other = replace(request, activity=routed(random, 2, 24, 4), current=current)
    for problem, new, old in zip(problems(other), POLICIES[name](other), held, strict=True):
        assert score(name, problem, new) < 0.98 * score(name, problem, old)


def test_eplb_evens_out_tokens_and_activation_aware_a_max() -> None:
    """Two experts that are always active together: a host with both activates both."""
    tokens = np.array([[[0, 1], [2, 3]] * 20], dtype=np.uint16)
    together = np.zeros((1, 4, 4), dtype=np.float32)
    together[0, 0, 1] = together[0, 1, 0] = together[0, 2, 3] = together[0, 3, 2] = 20
    activity = Activity(counts=np.full((1, 4), 20.0), coactivation=together, trace=tokens)
    request = PlacingRequest(num_layers=1, num_experts=4, hosts=hosts(2, 2), activity=activity)
    worst = placed((((0, 1), (2, 3)),), request.hosts, 4)
    assert estimate_a_max(worst, tokens, batch=1).tolist() == [2.0]
    # Tokens are balanced already.
    assert POLICIES["eplb"](replace(request, current=worst)) == (((0, 1), (2, 3)),)
    held = POLICIES["activation-aware"](request)
    assert estimate_a_max(held, tokens, batch=1).tolist() == [1.0]
    held = POLICIES["activation-aware"](replace(request, current=worst, activity=replace(activity, trace=None)))
    assert estimate_a_max(held, tokens, batch=1).tolist() == [1.0]


def test_a_fast_host_takes_more_load() -> None:
    random = np.random.default_rng(11)
    fast = (Host(name="fast", capacity=24, speed=3.0), *hosts(3, 24))
    request = PlacingRequest(num_layers=1, num_experts=24, hosts=fast, activity=routed(random, 1, 24, 4))
    slow = replace(request, hosts=tuple(replace(host, speed=1.0) for host in fast))
    assert request.activity is not None
    assert request.activity.trace is not None
    for name in ("eplb", "activation-aware"):
        held = POLICIES[name](request)
        assert len(held[0][0]) == 12
        speeds = [host.speed for host in fast]
        time = estimate_a_max(held, request.activity.trace, batch=16, speeds=speeds)
        assert time < 0.8 * estimate_a_max(POLICIES[name](slow), request.activity.trace, batch=16)


@pytest.mark.parametrize("name", ["eplb", "activation-aware"])
def test_second_replicas_go_to_another_node(name: str) -> None:
    """16 experts with two replicas each on two nodes, alike in load and never chosen together: nodes decide."""
    activity = Activity(counts=np.ones((1, 16)), coactivation=np.zeros((1, 16, 16), dtype=np.float32))
    request = PlacingRequest(num_layers=1, num_experts=16, hosts=hosts(4, 8, nodes=2), fill=8, activity=activity)
    (layer,) = POLICIES[name](request)
    nodes = [{number % 2 for number, held in enumerate(layer) if expert in held} for expert in range(16)]
    assert nodes == [{0, 1}] * 16


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_what_cannot_be_placed_is_refused_by_name(policy: PlacingPolicy) -> None:
    with pytest.raises(ConfigError, match="the model has 8"):
        policy(PlacingRequest(num_layers=1, num_experts=8, hosts=hosts(2, 3)))
    wrong = Activity(counts=np.ones((2, 8)))
    with pytest.raises(ConfigError, match="activations"):
        policy(PlacingRequest(num_layers=1, num_experts=8, hosts=hosts(2), activity=wrong))
    other = placed((((0, 1), (2,)),), hosts(2), 3)
    with pytest.raises(ConfigError, match="1 layers with 3 experts"):
        policy(PlacingRequest(num_layers=1, num_experts=8, hosts=hosts(2), current=other))


def test_experts_that_are_never_chosen_are_placed_too() -> None:
    activity = Activity(
        counts=np.array([[5.0, 0, 0, 0]]),
        coactivation=np.zeros((1, 4, 4), dtype=np.float32),
        trace=np.zeros((1, 0, 2), dtype=np.uint16),
    )
    request = PlacingRequest(num_layers=1, num_experts=4, hosts=hosts(3), activity=activity)
    for policy in POLICIES.values():
        check(request, policy(request))


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_one_instance_may_die_where_there_are_slots_for_two_of_each(name: str, data: st.DataObject) -> None:
    request = data.draw(requests())
    total = min(len(request.hosts), 4)
    if total < 2:
        return
    # Hosts alike, which have what it takes: with one that holds almost all slots, no placement can do it.
    request = replace(
        request,
        hosts=hosts(total, capacity=request.num_experts),
        fill=-(-2 * request.num_experts // total),
        current=None,
    )
    for layer in POLICIES[name](request):
        for gone in range(total):
            left = {expert for g, held in enumerate(layer) if g != gone for expert in held}
            assert left == set(range(request.num_experts))
