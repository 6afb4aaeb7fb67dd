"""The schedulers of the CPU, plain and compiled, decide what the CUDA kernel decides."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from janus.core.placement import EMPTY, Placement
from janus.core.scheduling import SCHEDULERS, Assignment, Scheduler, layer_tables
from janus.model.kernels.scheduling import CompiledScheduler, fastest_scheduler
from tests.kernels import cases, oracle
from tests.kernels.launch import aebs
from tests.kernels.shim import RawModule


@cache
def compiled() -> Scheduler:
    scheduler = fastest_scheduler("aebs")
    if not isinstance(scheduler, CompiledScheduler):
        pytest.skip("needs a C++ compiler, for the CPU kernels")
    return scheduler


def placement(case: oracle.Case) -> Placement:
    """Return a placement of one layer with the case's replicas, each at the case's physical id."""
    slots = [[e for e, hosts in enumerate(case.replicas) if g in hosts] for g in range(case.instances)]
    width = max(len(held) for held in slots)
    rows = tuple(tuple(held + [EMPTY] * (width - len(held))) for held in slots)
    names = tuple(f"expert-{g}" for g in range(case.instances))
    return Placement(epoch=1, num_experts=len(case.replicas), instances=names, slots=(rows,))


def differs(case: oracle.Case, got: Assignment, wanted: oracle.Result) -> str:
    """Name what is not the same, or return an empty string; an assignment's a_max leaves out what was queued."""
    activated, _, repairs, proven = wanted.stats.tolist()
    if (got.activated, got.repairs, got.proven) != (activated, repairs, bool(proven)):
        return f"{case.name}: {got.activated, got.repairs, got.proven} is not {activated, repairs, proven}"
    if not np.array_equal(got.load, wanted.load):
        return f"{case.name}: load {got.load} is not {wanted.load}"
    same = np.array_equal(got.phys_ids.ravel(), wanted.phys.ravel())
    return "" if same else f"{case.name}: phys_ids {got.phys_ids} is not {wanted.phys}"


@pytest.mark.parametrize("kind", cases.KINDS)
def test_decides_what_the_kernel_decides(plain: RawModule, kind: str) -> None:
    plain.order = "ascending"
    for seed in range(100, 112):
        case = cases.draw(kind, seed)
        kernel = aebs(plain.get_function("aebs"), case, 64)
        for scheduler in (compiled(), SCHEDULERS["aebs"]):
            got = scheduler(case.ids.reshape(-1, 1), placement(case), 0, case.load0)
            assert not differs(case, got, kernel)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", cases.KINDS)
def test_decides_what_the_oracle_decides_thousands_of_times(kind: str) -> None:
    for seed in range(1000, 4000):
        case = cases.draw(kind, seed)
        got = compiled()(case.ids.reshape(-1, 1), placement(case), 0, case.load0)
        assert not differs(case, got, oracle.schedule(case))


@pytest.mark.parametrize("kind", cases.KINDS)
def test_the_tables_are_those_of_the_kernel(kind: str) -> None:
    case = cases.draw(kind, 9)
    tables = layer_tables(placement(case), 0)
    for mine, its in ((case.order, tables.order), (case.hosts, tables.hosts), (case.phys_of, tables.phys_of)):
        assert mine.dtype == its.dtype
        assert np.array_equal(mine, its)
