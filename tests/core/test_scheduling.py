"""Replica choice per dispatch: what every scheduler keeps, and that AEBS reaches the least a_max there is."""

from __future__ import annotations

from collections import Counter

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus.core.placement import EMPTY, Placement, static_placement
from janus.core.scheduling import SCHEDULERS, layer_tables
from janus.core.scheduling.aebs import aebs, aebs_greedy
from janus.core.scheduling.policies import static, token_balanced
from janus.errors import ConfigError
from tests.core.optimum import least_a_max


def placed(hosts: list[list[int]], instances: int) -> Placement:
    """One layer in which expert e has a replica on each of ``hosts[e]``."""
    held: list[list[int]] = [[] for _ in range(instances)]
    for expert, where in enumerate(hosts):
        for instance in where:
            held[instance].append(expert)
    slots = max(1, *(len(experts) for experts in held))
    layer = tuple(tuple(experts + [EMPTY] * (slots - len(experts))) for experts in held)
    names = tuple(f"expert-{index}" for index in range(instances))
    return Placement(epoch=1, num_experts=len(hosts), instances=names, slots=(layer,))


@st.composite
def dispatches(draw: st.DrawFn) -> tuple[Placement, npt.NDArray[np.int32], npt.NDArray[np.int32] | None]:
    experts, instances = draw(st.integers(1, 20)), draw(st.integers(1, 6))
    hosts = draw(
        st.lists(
            st.sets(st.integers(0, instances - 1), min_size=1, max_size=instances).map(sorted),
            min_size=experts,
            max_size=experts,
        )
    )
    tokens, top_k = draw(st.integers(0, 12)), draw(st.integers(1, 4))
    random = np.random.default_rng(draw(st.integers(0, 99)))
    ids = random.integers(-1, experts + 1, (tokens, top_k)).astype(np.int32)
    load0 = random.integers(0, 4, instances).astype(np.int32) if draw(st.booleans()) else None
    return placed(hosts, instances), ids, load0


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
@settings(max_examples=80, deadline=None)
@given(dispatch=dispatches())
def test_every_scheduler_keeps_the_contract(
    name: str, dispatch: tuple[Placement, npt.NDArray[np.int32], npt.NDArray[np.int32] | None]
) -> None:
    placement, ids, load0 = dispatch
    result = SCHEDULERS[name](ids, placement, 0, load0)
    real = (ids >= 0) & (ids < placement.num_experts)
    assert (result.phys_ids.shape, result.phys_ids.dtype) == (ids.shape, np.dtype(np.int32))
    # A replica of the expert that was asked for; nothing for what is no expert.
    assert (result.phys_ids[~real] == -1).all()
    assert (placement.phys_to_logical[0][result.phys_ids[real]] == ids[real]).all()
    replicas, experts = set(result.phys_ids[real].tolist()), set(ids[real].tolist())
    if name != "token-balanced":
        assert len(replicas) == len(experts)
    assert result.activated == len(experts)
    counted = Counter(replica // placement.slots_per_instance for replica in replicas)
    assert result.load.tolist() == [counted[g] for g in range(placement.num_instances)]
    assert result.a_max == max(result.load)
    hosts = np.where(result.phys_ids < 0, -1, result.phys_ids // placement.slots_per_instance).tolist()
    assert result.rows.tolist() == [sum(g in row for row in hosts) for g in range(placement.num_instances)]
    again = SCHEDULERS[name](ids, placement, 0, load0)
    assert (again.phys_ids == result.phys_ids).all()


@settings(max_examples=300, deadline=None)
@given(dispatch=dispatches())
def test_aebs_reaches_the_least_a_max(
    dispatch: tuple[Placement, npt.NDArray[np.int32], npt.NDArray[np.int32] | None],
) -> None:
    placement, ids, load0 = dispatch
    result = aebs(ids, placement, 0, load0)
    queued = [0] * placement.num_instances if load0 is None else load0.tolist()
    active = sorted(set(ids[(ids >= 0) & (ids < placement.num_experts)].tolist()))
    least = least_a_max([placement.hosts(0, expert) for expert in active], queued)
    assert max(np.array(queued) + result.load) == least
    assert result.proven is True


def every_expert(placement: Placement) -> npt.NDArray[np.int32]:
    return np.arange(placement.num_experts, dtype=np.int32)[:, None]


def test_greedy_is_fooled_and_aebs_is_not() -> None:
    """Expert 0 takes instance 0 though 1 is its alone; experts 1 and 2, who need 0 and 2, then meet on one of them."""
    placement = placed([[0, 1], [0, 2], [0, 2]], 3)
    greedy, best = (scheduler(every_expert(placement), placement, 0) for scheduler in (aebs_greedy, aebs))
    assert (greedy.a_max, best.a_max) == (2, 1)


@pytest.mark.parametrize("instances", [2, 3, 8, 64])
def test_a_long_chain_is_repaired_to_its_end(instances: int) -> None:
    """Expert e may go to e or e + 1, and one more expert weighs the first instance down: all must move up by one."""
    placement = placed([[0], *([g, g + 1] for g in range(instances - 1))], instances)
    result = aebs(every_expert(placement), placement, 0)
    assert result.load.tolist() == [1] * instances
    assert result.proven is True


def test_what_is_queued_counts() -> None:
    placement = placed([[0, 1], [0, 1]], 2)
    assert aebs(every_expert(placement), placement, 0, np.array([5, 0], dtype=np.int32)).load.tolist() == [0, 2]


def test_static_takes_the_first_replica_whatever_the_load() -> None:
    placement = static_placement(num_layers=1, num_experts=2, instances=("x", "y"), slots_per_instance=2)
    result = static(np.array([[0, 1], [1, 0]]), placement, 0, load0=np.array([9, 0], dtype=np.int32))
    assert result.phys_ids.tolist() == [[0, 2], [2, 0]]
    assert result.load.tolist() == [1, 1]


def test_token_balancing_takes_replicas_in_turn() -> None:
    placement = placed([[0, 1], [1]], 2)
    result = token_balanced(np.array([[0], [0], [1], [0]]), placement, 0)
    assert (result.phys_ids // placement.slots_per_instance).ravel().tolist() == [0, 1, 1, 0]
    assert result.load.tolist() == [1, 2]


def test_more_instances_than_a_word_has_bits_are_refused_by_name() -> None:
    names = tuple(f"expert-{index}" for index in range(65))
    placement = static_placement(num_layers=1, num_experts=65, instances=names)
    with pytest.raises(ConfigError, match="65 expert instances"):
        layer_tables(placement, 0)
