"""Replica choice per dispatch, against a plain loop."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus.core.placement import static_placement
from janus.core.scheduling import SCHEDULERS, static


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
@settings(max_examples=80, deadline=None)
@given(
    experts=st.integers(1, 20),
    instances=st.integers(1, 6),
    extra=st.integers(0, 3),
    tokens=st.integers(0, 12),
    top_k=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_every_scheduler_keeps_the_contract(
    *, name: str, experts: int, instances: int, extra: int, tokens: int, top_k: int, seed: int
) -> None:
    placement = static_placement(
        num_layers=2,
        num_experts=experts,
        instances=tuple(f"expert-{i}" for i in range(instances)),
        slots_per_instance=-(-experts // instances) + extra,
    )
    topk_ids = np.random.default_rng(seed).integers(0, experts, (tokens, top_k))
    result = SCHEDULERS[name](topk_ids, placement, 1)
    assert (result.phys_ids.shape, result.phys_ids.dtype) == ((tokens, top_k), np.dtype(np.int32))
    assert (result.load.shape, result.load.dtype) == ((instances,), np.dtype(np.int32))
    # A replica of the expert that was asked for, and one replica per expert.
    assert (placement.phys_to_logical[1][result.phys_ids] == topk_ids).all()
    replicas = set(result.phys_ids.ravel().tolist())
    assert len(replicas) == len(set(topk_ids.ravel().tolist()))
    # a_g: distinct replicas per instance.
    counted = Counter(replica // placement.slots_per_instance for replica in replicas)
    assert result.load.tolist() == [counted[g] for g in range(instances)]
    hosts = result.phys_ids // placement.slots_per_instance
    assert result.rows.tolist() == [sum(g in row for row in hosts.tolist()) for g in range(instances)]
    again = SCHEDULERS[name](topk_ids, placement, 1)
    assert (again.phys_ids == result.phys_ids).all()


def test_static_takes_the_first_replica_whatever_the_load() -> None:
    placement = static_placement(num_layers=1, num_experts=2, instances=("x", "y"), slots_per_instance=2)
    result = static(np.array([[0, 1], [1, 0]]), placement, 0, load0=np.array([9, 0]))
    assert result.phys_ids.tolist() == [[0, 2], [2, 0]]
    assert result.load.tolist() == [1, 1]


def test_an_expert_that_does_not_exist_is_an_error() -> None:
    placement = static_placement(num_layers=1, num_experts=2, instances=("x",))
    for wrong in (-1, 2):
        with pytest.raises((IndexError, ValueError)):
            static(np.array([[wrong]]), placement, 0)
