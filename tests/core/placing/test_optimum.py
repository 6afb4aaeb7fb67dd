"""How far the policies are from the best placement there is, on layers that a solver can do exactly."""

from __future__ import annotations

import numpy as np
import pytest
from benchmarks.placement.optimum import least_a_max, least_coactivation, least_load

from janus.core.placing.contract import PlacingRequest
from janus.core.placing.objective import Batches, coactivation_cost
from janus.core.placing.policies.activation_aware import algorithm_3
from janus.core.placing.policies.eplb import packed
from janus.core.placing.problem import LayerProblem, problems
from janus.core.placing.replicas import replica_counts
from janus.core.placing.search import improved
from tests.core.placing.drawn import routed
from tests.core.placing.test_policies import hosts

EXPERTS, HOSTS, SLOTS = 8, 3, 4
QUOTAS = [SLOTS] * HOSTS
SEEDS = range(6)


def problem(seed: int) -> LayerProblem:
    activity = routed(np.random.default_rng(seed), 1, EXPERTS, 2)
    request = PlacingRequest(num_layers=1, num_experts=EXPERTS, hosts=hosts(HOSTS), fill=SLOTS, activity=activity)
    (found,) = problems(request)
    return found


@pytest.mark.parametrize("seed", SEEDS)
def test_eplb_packs_within_5_percent_of_the_least_load(seed: int) -> None:
    layer = problem(seed)
    counts = replica_counts(layer.loads, total_slots=HOSTS * SLOTS, num_instances=HOSTS)
    best, proven = least_load(counts, layer.loads / counts, QUOTAS)
    assert proven
    found = float((packed(layer) @ (layer.loads / counts)).max())
    assert best * (1 - 1e-6) <= found <= 1.05 * best


@pytest.mark.parametrize("seed", SEEDS)
def test_algorithm_3_is_within_20_percent_of_the_least_coactivation(seed: int) -> None:
    layer = problem(seed)
    counts = replica_counts(layer.loads, total_slots=HOSTS * SLOTS, num_instances=HOSTS)
    best, proven = least_coactivation(counts, layer.coactivation, QUOTAS)
    assert proven
    found = coactivation_cost(algorithm_3(layer), layer.coactivation, layer.speeds)
    assert best * (1 - 1e-6) <= found <= 1.2 * best


@pytest.mark.parametrize("seed", SEEDS)
def test_the_search_ends_within_5_percent_of_the_least_mean_a_max(seed: int) -> None:
    layer = problem(seed)
    assert layer.trace is not None
    batches = Batches(layer.trace, EXPERTS, [4], 10, seed)
    best, proven = least_a_max(batches.active, QUOTAS)
    assert proven
    found = batches.mean_a_max(improved(layer, algorithm_3(layer), batches), layer.speeds)
    assert best * (1 - 1e-6) <= found <= 1.05 * best
