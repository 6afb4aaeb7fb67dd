"""The kernel's text, run on the CPU, computes what the oracle computes, and its a_max is the optimum."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.kernels import cases, oracle
from tests.kernels.launch import aebs
from tests.kernels.shim import Order, RawModule

BLOCKS = (32, 64, 256, 1024)
ORDERS: tuple[Order, ...] = ("ascending", "descending", "random")


def verify(module: RawModule, case: oracle.Case, block: int, *, in_place: bool = False, offset: int = 0) -> None:
    """Launch ``case`` and compare every output with the oracle's."""
    result = aebs(module.get_function("aebs"), case, block, in_place=in_place, offset=offset)
    where = f"{case.name}, block {block}, {module.order} {module.seed}, in_place {in_place}, offset {offset}"
    assert not result.differs(oracle.schedule(case)), where


@pytest.mark.parametrize("kind", cases.KINDS)
def test_is_what_the_oracle_says(plain: RawModule, kind: str) -> None:
    for seed in range(48):
        plain.order, plain.seed = ORDERS[seed % 3], seed
        block = BLOCKS[seed % 4 if seed % 8 else 0]
        verify(plain, cases.draw(kind, seed), block, in_place=seed % 2 == 1, offset=seed % 5)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", cases.KINDS)
def test_is_what_the_oracle_says_thousands_of_times(plain: RawModule, kind: str) -> None:
    for seed in range(1000, 4000):
        plain.order, plain.seed = ORDERS[seed % 3], seed
        verify(plain, cases.draw(kind, seed), BLOCKS[seed % 3], in_place=seed % 2 == 1, offset=seed % 5)


@pytest.mark.parametrize("kind", cases.KINDS)
def test_is_optimal(kind: str) -> None:
    for seed in range(60):
        case = cases.draw(kind, seed)
        oracle.check(case, oracle.schedule(case))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", cases.KINDS)
def test_is_optimal_thousands_of_times(kind: str) -> None:
    for seed in range(1000, 4000):
        case = cases.draw(kind, seed)
        oracle.check(case, oracle.schedule(case))


def test_the_cases_need_repairs() -> None:
    repairs = {
        kind: [int(oracle.schedule(cases.draw(kind, seed)).stats[2]) for seed in range(48)] for kind in cases.KINDS
    }
    assert sum(n > 0 for counts in repairs.values() for n in counts) >= 30
    assert max(max(counts) for counts in repairs.values()) >= 3


@pytest.mark.parametrize("block", BLOCKS)
def test_any_block_gives_the_same(plain: RawModule, block: int) -> None:
    for kind in cases.KINDS:
        for order in ORDERS:
            plain.order, plain.seed = order, block
            verify(plain, cases.draw(kind, 77), block)


def test_the_largest_launch(plain: RawModule) -> None:
    plain.order = "ascending"
    case = cases.largest()
    result = aebs(plain.get_function("aebs"), case, 1024, in_place=True)
    assert not result.differs(oracle.schedule(case))
    oracle.check(case, result)


@pytest.mark.parametrize("count", [0, 1, 255, 256, 257, 511, 512, 513])
def test_around_a_batch_of_ids(plain: RawModule, count: int) -> None:
    # A block of 32 reads 256 ids at a time.
    plain.order = "descending"
    case = cases.draw("random", 5)
    ids = cases.routing(np.random.default_rng(count), len(case.replicas), count)
    verify(plain, replace(case, ids=ids), 32, in_place=True)


def test_nothing_activated(plain: RawModule) -> None:
    plain.order = "ascending"
    case = oracle.Case(name="idle", ids=np.full(9, -1, np.int32), replicas=((0, 1), (1,)), instances=2)
    result = aebs(plain.get_function("aebs"), case, 64)
    assert result.stats.tolist() == [0, 0, 0, 1]
    assert result.load.tolist() == [0, 0]
    assert set(result.phys.tolist()) == {-1}


def test_the_fullest_queue_bounds_a_max(plain: RawModule) -> None:
    plain.order = "ascending"
    load0 = np.array([5, 0, 0], np.int32)
    ids = np.arange(3, dtype=np.int32)
    case = oracle.Case(name="queued", ids=ids, replicas=((0, 1), (0, 2), (0, 1, 2)), instances=3, load0=load0)
    result = aebs(plain.get_function("aebs"), case, 32)
    assert result.load[0] == 0
    assert result.stats.tolist() == [3, 5, 0, 1]


@pytest.mark.parametrize("order", ORDERS)
def test_touches_no_memory_but_its_own(address: RawModule, order: Order) -> None:
    address.order = order
    for seed, kind in enumerate(cases.KINDS):
        address.seed = seed
        verify(address, cases.draw(kind, 500 + seed), BLOCKS[seed % 3], in_place=seed % 2 == 0, offset=seed)


@pytest.mark.parametrize("order", ORDERS)
def test_has_no_data_race(thread: RawModule, order: Order) -> None:
    thread.order = order
    for seed, kind in enumerate(cases.KINDS):
        thread.seed = seed
        verify(thread, cases.draw(kind, 600 + seed), BLOCKS[seed % 3], in_place=seed % 2 == 0)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_has_no_data_race_in_hundreds_of_launches(thread: RawModule) -> None:
    for kind in cases.KINDS:
        for seed in range(60):
            thread.order, thread.seed = ORDERS[seed % 3], seed
            verify(thread, cases.draw(kind, 700 + seed), BLOCKS[seed % 4])
