"""The compiled schedulers decide what the plain ones decide, and AEBS never misses the least a_max."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus.core.placement import Placement, static_placement
from janus.core.scheduling import SCHEDULERS, Assignment, LayerTables, layer_tables
from janus.model.kernels import scheduling
from janus.model.kernels.scheduling import CompiledScheduler, fastest_scheduler
from tests.core.optimum import least_a_max
from tests.core.test_scheduling import placed


def same(ours: Assignment, theirs: Assignment) -> None:
    assert ours.phys_ids.tolist() == theirs.phys_ids.tolist()
    assert ours.load.tolist() == theirs.load.tolist()
    assert ours.rows.tolist() == theirs.rows.tolist()
    assert (ours.activated, ours.repairs, ours.proven) == (theirs.activated, theirs.repairs, theirs.proven)
    if ours.phys_ids.size:
        assert ours.phys_address == ours.phys_ids.ctypes.data


def random_placement(random: np.random.Generator, experts: int, instances: int) -> Placement:
    spare = random.random()
    hosts = [
        sorted(random.permutation(instances)[: 1 + int(random.binomial(instances - 1, spare))].tolist())
        for _ in range(experts)
    ]
    return placed(hosts, instances)


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_all_are_compiled(name: str) -> None:
    assert isinstance(fastest_scheduler(name), CompiledScheduler)


def test_an_unknown_name_is_an_error() -> None:
    with pytest.raises(KeyError):
        fastest_scheduler("fastest")


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
@settings(max_examples=60, deadline=None)
@given(
    experts=st.integers(1, 40),
    instances=st.integers(1, 8),
    extra=st.integers(0, 4),
    shapes=st.lists(st.tuples(st.integers(0, 30), st.integers(1, 6)), min_size=1, max_size=4),
    seed=st.integers(0, 99),
)
def test_the_same_decisions(
    *, name: str, experts: int, instances: int, extra: int, shapes: list[tuple[int, int]], seed: int
) -> None:
    dealt = static_placement(
        num_layers=3,
        num_experts=experts,
        instances=tuple(f"expert-{index}" for index in range(instances)),
        slots_per_instance=-(-experts // instances) + extra,
    )
    random = np.random.default_rng(seed)
    compiled = fastest_scheduler(name)
    for layer, shape in enumerate(shapes):  # one scheduler for batches of any size, and for changing placements
        for placement, number in ((dealt, layer % 3), (random_placement(random, experts, instances), 0)):
            ids = random.integers(-1, experts + 1, shape).astype(np.int32)
            load0 = random.integers(0, 5, instances).astype(np.int32) if random.random() < 0.5 else None
            same(compiled(ids, placement, number, load0), SCHEDULERS[name](ids, placement, number, load0))


def test_twenty_thousand_dispatches_reach_the_least_a_max() -> None:
    random = np.random.default_rng(0)
    scheduler = fastest_scheduler("aebs")
    repaired = 0
    for _ in range(400):
        experts, instances = int(random.integers(2, 25)), int(random.integers(2, 9))
        placement = random_placement(random, experts, instances)
        hosts = [placement.hosts(0, expert) for expert in range(experts)]
        for _ in range(50):
            ids = random.permutation(experts)[: random.integers(1, experts + 1)].astype(np.int32)
            load0 = random.integers(0, 3, instances).astype(np.int32) if random.random() < 0.3 else None
            result = scheduler(ids[:, None], placement, 0, load0)
            queued = np.zeros(instances, dtype=np.int32) if load0 is None else load0
            assert result.proven
            assert max(result.load + queued) == least_a_max([hosts[e] for e in ids.tolist()], queued.tolist())
            repaired += result.repairs > 0
    assert repaired > 20, "no case needed a repair: the cases are too easy"


def test_sixty_four_instances_and_512_experts() -> None:
    random = np.random.default_rng(1)
    placement = random_placement(random, 512, 64)
    scheduler = fastest_scheduler("aebs")
    for tokens in (1, 64, 2048):
        ids = np.array([random.permutation(512)[:8] for _ in range(tokens)], dtype=np.int32)
        same(scheduler(ids, placement, 0), SCHEDULERS["aebs"](ids, placement, 0))


def test_more_instances_than_can_be_balanced_are_served_by_the_first_replica() -> None:
    names = tuple(f"expert-{index}" for index in range(65))
    placement = static_placement(num_layers=1, num_experts=130, instances=names)
    ids = np.arange(130, dtype=np.int32)[:, None]
    result = fastest_scheduler("aebs")(ids, placement, 0)
    assert result.phys_ids.tolist() == SCHEDULERS["static"](ids, placement, 0).phys_ids.tolist()
    assert result.proven is None


def test_two_epochs_in_use_are_laid_out_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """While an epoch replaces another, steps in flight alternate between the two, layer by layer."""
    laid_out: list[int] = []

    def counted(placement: Placement, layer: int) -> LayerTables:
        laid_out.append(layer)
        return layer_tables(placement, layer)

    monkeypatch.setattr(scheduling, "layer_tables", counted)
    random = np.random.default_rng(3)
    placements = [random_placement(random, 24, instances) for instances in (4, 5, 6, 3, 2)]
    scheduler, plain = fastest_scheduler("aebs"), SCHEDULERS["aebs"]
    for _ in range(3):
        for placement in placements[:4]:
            ids = random.integers(0, 24, (8, 2)).astype(np.int32)
            same(scheduler(ids, placement, 0), plain(ids, placement, 0))
    assert len(laid_out) == 4
    scheduler(ids, placements[4], 0)
    scheduler(ids, placements[3], 0)  # one of the last four still
    assert len(laid_out) == 5
    scheduler(ids, placements[0], 0)  # used the longest time ago: it has been let go
    assert len(laid_out) == 6


def test_a_decode_step_is_scheduled_in_microseconds() -> None:
    """B = 64, k = 8, E = 128, 16 instances; the benchmark has the figures, this only guards against a blunder."""
    placement = static_placement(
        num_layers=1,
        num_experts=128,
        instances=tuple(f"expert-{index}" for index in range(16)),
        slots_per_instance=11,
    )
    random = np.random.default_rng(2)
    ids = np.array([random.permutation(128)[:8] for _ in range(64)], dtype=np.int32)
    scheduler = fastest_scheduler("aebs")
    scheduler(ids, placement, 0)
    spent = []
    for _ in range(50):
        started = time.perf_counter_ns()
        scheduler(ids, placement, 0)
        spent.append(time.perf_counter_ns() - started)
    assert min(spent) < 300_000
