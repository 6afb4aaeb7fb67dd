"""Tables of a_max: monotone, capped, repeatable, the same as what scheduling gives, and below the bounds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus.core.placing import POLICIES
from janus.core.placing.contract import Held, PlacingRequest
from janus.core.placing.objective import a_max_bound, estimate_a_max
from janus.core.planning.activation import AMaxTable, by_weight, estimate, instance_grid
from janus.core.planning.bounds import certain_bound
from janus.core.planning.routing import synthetic_routing
from janus.core.scheduling import SCHEDULERS, Assignment
from janus.errors import ConfigError
from tests.core.planning.worlds import MODEL, spread, table_of


@pytest.fixture(scope="module")
def small() -> AMaxTable:
    ids = synthetic_routing(24, 3, 600, popularity=0.7, seed=2)
    return estimate(
        ids,
        num_experts=24,
        slots=8,
        instances=(3, 4, 6, 10),
        batches=(4, 16, 64),
        scheduler=SCHEDULERS["aebs"],
        draws=8,
    )


@given(st.integers(1, 20), st.floats(1, 1e6), st.floats(0, 1e6))
def test_more_tokens_activate_no_fewer_and_no_more_than_there_are_slots(
    small: AMaxTable, experts: int, batch: float, more: float
) -> None:
    first, second = small(experts, batch), small(experts, batch + more)
    assert 1 <= first <= second <= small.slots


def test_it_is_exact_at_its_points_and_between_them_between(small: AMaxTable) -> None:
    rising = np.maximum.accumulate(small.mean, axis=1)
    for row, experts in enumerate(small.instances):
        for column, batch in enumerate(small.batches):
            assert small(experts, batch) == pytest.approx(rising[row, column])
    low, high = sorted((small(4, 16), small(6, 16)))
    assert low <= small(5, 16) <= high
    assert small(4, 16) <= small(4, 30) <= small(4, 64)
    assert small(99, 64) == small(10, 64)
    assert small(1, 64) == small(3, 64)


def test_arrays_give_what_numbers_give(small: AMaxTable) -> None:
    experts, batch = np.array([[3], [5], [12]]), np.array([[1.0, 9.5, 64.0, 5000.0]])
    plane = small(experts, batch)
    assert plane.shape == (3, 4)
    for a, b in np.ndindex(3, 4):
        assert plane[a, b] == pytest.approx(small(int(experts[a, 0]), float(batch[0, b])))


def test_between_estimated_numbers_of_instances_little_is_lost() -> None:
    every, some = table_of(MODEL, 27, 64), estimate_like(instance_grid(6, 64))
    for experts in range(6, 65):
        for batch in (4, 64, 512):
            assert some(experts, batch) == pytest.approx(every(experts, batch), rel=0.03)


def test_the_grid_has_the_ends_and_ever_fewer_between() -> None:
    grid = instance_grid(6, 64)
    assert (grid[0], grid[-1]) == (6, 64)
    assert len(grid) < 30
    assert (np.diff(grid) > 0).all()
    assert instance_grid(5, 5) == (5,)


def test_a_table_is_what_scheduling_drawn_batches_gives() -> None:
    ids = synthetic_routing(16, 2, 400, layers=3, popularity=0.5)
    seen: list[Assignment] = []

    def watched(*arguments: Any) -> Assignment:
        seen.append(SCHEDULERS["aebs"](*arguments))
        return seen[-1]

    table = estimate(ids, num_experts=16, slots=6, instances=(4,), batches=(1, 8), scheduler=watched, draws=5, layers=2)
    assert len(seen) == 2 * 5 * 2
    found = np.array([each.a_max for each in seen]).reshape(2, 2, 5)  # layer, size, draw
    assert table.mean[0] == pytest.approx(found.transpose(1, 0, 2).reshape(2, -1).mean(axis=1))
    eight = found[:, 1].ravel()
    assert table.error[0, 1] == pytest.approx(eight.std(ddof=1) / np.sqrt(10))


def test_the_quick_way_is_the_estimate_of_placements_and_never_below_the_scheduler() -> None:
    ids = synthetic_routing(24, 3, 400, popularity=0.8)
    arguments: dict[str, Any] = {
        "num_experts": 24,
        "slots": 8,
        "instances": (3, 5, 8),
        "batches": (4, 16),
        "draws": 16,
        "seed": 7,
    }
    quick = estimate(ids, **arguments)
    exact = estimate(ids, **arguments, scheduler=SCHEDULERS["aebs"])
    assert (quick.mean >= exact.mean - 1e-9).all()
    assert (quick.mean <= exact.mean * 1.05).all()


def test_random_scheduling_activates_more_on_the_busiest_than_balancing() -> None:
    ids = synthetic_routing(24, 3, 400)
    by = {
        name: estimate(
            ids, num_experts=24, slots=12, instances=(6,), batches=(16,), scheduler=SCHEDULERS[name], draws=16
        )(6, 16)
        for name in ("aebs", "random")
    }
    assert by["aebs"] < by["random"]


def test_same_arguments_same_table_and_another_seed_another() -> None:
    ids = synthetic_routing(16, 2, 200)
    first, again, other = (
        estimate(ids, num_experts=16, slots=6, instances=(3, 4), batches=(8,), draws=4, seed=seed) for seed in (1, 1, 2)
    )
    assert np.array_equal(first.mean, again.mean)
    assert not np.array_equal(first.mean, other.mean)


def test_a_placement_never_knows_the_future() -> None:
    """Another second half changes what is measured, not what is placed: the first half alone decides."""
    ids = synthetic_routing(12, 2, 200, popularity=1.0)
    placed: list[Held] = []

    def watching(request: PlacingRequest) -> Held:
        placed.append(POLICIES["eplb"](request))
        return placed[-1]

    other = ids.copy()
    other[:, 100:] = synthetic_routing(12, 2, 100, popularity=1.0, seed=9)
    for each in (ids, other):
        estimate(each, num_experts=12, slots=5, instances=(4,), batches=(8,), policy=watching, draws=4)
    assert placed[0] == placed[1]


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_the_bounds_are_never_below_monte_carlo(data: st.DataObject) -> None:
    experts = data.draw(st.integers(4, 32))
    top_k = data.draw(st.integers(1, min(4, experts)))
    slots = data.draw(st.integers(2, experts))
    first = -(-experts // slots)
    # The paper's bound takes the experts of a token for independent; that of the docstring does not.
    affinity = data.draw(st.sampled_from([0.0, 3.0]))
    ids = synthetic_routing(
        experts, top_k, 300, popularity=data.draw(st.floats(0, 1.5)), clusters=4, affinity=affinity, seed=1
    )
    held: list[Held] = []

    def watching(request: PlacingRequest) -> Held:
        held.append(POLICIES["eplb"](request))
        return held[-1]

    table = estimate(
        ids,
        num_experts=experts,
        slots=slots,
        instances=(first, first + 3),
        batches=(1, 4, 16, 64),
        policy=watching,
        scheduler=SCHEDULERS["aebs"],
        draws=48,
        layers=1,
    )
    # With one instance the bound is the mean itself, and hypothesis looks for the unluckiest of many draws: five
    # deviations, each at least that of a mean between two neighbouring numbers.
    chance = 5 * np.maximum(table.error, 0.5 / 48**0.5)
    for row, placed in enumerate(held):
        for column, batch in enumerate(table.batches):
            certain = certain_bound(placed, ids[:, 150:], batch=batch).mean()
            assert table.mean[row, column] <= certain + chance[row, column]
    if not affinity:
        assert (table.mean <= table.bound + chance).all()


def test_experts_that_go_together_break_the_papers_bound_and_not_the_certain_one() -> None:
    """Eight groups of four experts, each on one host: whoever chooses one chooses all four."""
    ids = np.repeat(np.random.default_rng(0).integers(0, 8, 4000)[None, :, None] * 4, 4, axis=2) + np.arange(4)
    placed = (tuple(tuple(range(4 * g, 4 * g + 4)) for g in range(8)),)
    mean = float(estimate_a_max(placed, ids, batch=1)[0])
    assert mean == 4
    assert a_max_bound(placed, ids, batch=1)[0] < mean
    assert certain_bound(placed, ids, batch=1)[0] >= mean


def test_tokens_come_as_often_as_their_weights_say() -> None:
    ids = np.arange(8).reshape(1, 4, 2)
    assert np.array_equal(by_weight(ids, np.ones(4)), ids)
    assert by_weight(ids, np.array([2.0, 1.0, 0.4, 0.6]))[0, :, 0].tolist() == [0, 0, 2, 6]
    assert by_weight(ids[:, :0], np.ones(0)).shape == (1, 0, 2)


def test_what_cannot_be_estimated_is_named() -> None:
    ids = synthetic_routing(8, 2, 40)
    valid: dict[str, Any] = {"num_experts": 8, "slots": 4, "instances": (2,), "batches": (4,)}
    for arguments in (
        {"instances": ()},
        {"instances": (0,)},
        {"batches": (0,)},
        {"draws": 0},
        {"instances": (1,)},  # four slots for eight experts
    ):
        with pytest.raises(ConfigError):
            estimate(ids, **(valid | arguments))
    with pytest.raises(ConfigError, match="trace"):
        estimate(ids[:, :1], num_experts=8, slots=4, instances=(2,))


def test_a_table_that_contradicts_itself_is_refused() -> None:
    right = table_of(MODEL, 27, 8)
    wrong: dict[str, Any]
    for wrong in ({"batches": right.batches[1:]}, {"instances": right.instances[::-1]}, {"mean": right.mean[:1]}):
        with pytest.raises(ConfigError, match="a_max"):
            replace(right, **wrong)


def estimate_like(instances: tuple[int, ...]) -> AMaxTable:
    """The table of ``worlds.spread`` at these numbers of instances only."""
    batches = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
    mean = np.array([[float(spread(n, b)) for b in batches] for n in instances])
    return AMaxTable(slots=27, instances=instances, batches=batches, mean=mean, error=0 * mean, bound=mean + 1)
