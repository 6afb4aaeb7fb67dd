"""The compiled schedulers decide what the plain ones decide."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus.core.placement import static_placement
from janus.core.scheduling import SCHEDULERS
from janus.model.kernels.scheduling import StaticScheduler, fastest_scheduler


def test_static_is_compiled() -> None:
    assert isinstance(fastest_scheduler("static"), StaticScheduler)


def test_an_unknown_name_is_an_error() -> None:
    with pytest.raises(KeyError):
        fastest_scheduler("fastest")


@settings(max_examples=80, deadline=None)
@given(
    experts=st.integers(1, 40),
    instances=st.integers(1, 6),
    extra=st.integers(0, 3),
    shapes=st.lists(st.tuples(st.integers(0, 30), st.integers(1, 6)), min_size=1, max_size=4),
    seed=st.integers(0, 99),
)
def test_the_same_decisions(experts: int, instances: int, extra: int, shapes: list[tuple[int, int]], seed: int) -> None:
    placement = static_placement(
        num_layers=3,
        num_experts=experts,
        instances=tuple(f"expert-{index}" for index in range(instances)),
        slots_per_instance=-(-experts // instances) + extra,
    )
    compiled, random = fastest_scheduler("static"), np.random.default_rng(seed)
    for layer, shape in enumerate(shapes):  # one scheduler for batches of any size
        ids = random.integers(0, experts, shape).astype(np.int32)
        ours, theirs = compiled(ids, placement, layer % 3), SCHEDULERS["static"](ids, placement, layer % 3)
        assert ours.phys_ids.tolist() == theirs.phys_ids.tolist()
        assert ours.load.tolist() == theirs.load.tolist()
        assert ours.rows.tolist() == theirs.rows.tolist()
        if ours.phys_address:
            assert ours.phys_address == ours.phys_ids.ctypes.data


@pytest.mark.parametrize("wrong", [-1, 4])
def test_an_expert_that_does_not_exist_is_an_error(wrong: int) -> None:
    placement = static_placement(num_layers=1, num_experts=4, instances=("x",))
    with pytest.raises(IndexError, match=r"outside 0\.\.3"):
        fastest_scheduler("static")(np.array([[0, wrong]], dtype=np.int32), placement, 0)
