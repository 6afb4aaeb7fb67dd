"""From counters to the parts of a step, which points are measured, and how figures read."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from janus.core.planning.hardware import Figure
from janus.profiling.observations import per_step
from janus.profiling.points import FULL, LEAST_TOKENS, QUICK, points
from janus.profiling.report import quantity, rows
from tests.profiling import planted

BEFORE = {"attention-0": {"steps": 10.0, "tokens": 40.0, "attention_ns": 5e6, "exchange.dispatches": 60.0}}
AFTER = {
    "attention-0": {
        "steps": 30.0,
        "tokens": 120.0,
        "attention_ns": 5e6 + 20 * 2e6,
        "gate_ns": 20 * 0.5e6,
        "dispatch_ns": 20 * 1e6,
        "combine_ns": 20 * 4e6,
        "total_ns": 20 * 9e6,
        "exchange.dispatches": 60.0 + 120,
        # Half a millisecond for each of six layers.
        "exchange.expert_ns": 120 * 0.5e6,
        "exchange.a_max": 120 * 7,
    }
}


def test_parts_of_a_step_are_differences_of_counters() -> None:
    parts = per_step(BEFORE, AFTER, moe_layers=6, wall_s=20 * 10e-3)
    assert parts == pytest.approx(
        {
            "attention_s": 2.5e-3,
            "experts_s": 3e-3,
            "exchange_s": 2e-3,
            "other_s": 2.5e-3,
            "a_max": 7,
            "steps": 20,
            "tokens": 80,
        }
    )


def test_pauses_between_prompts_belong_to_no_step() -> None:
    assert per_step(BEFORE, AFTER, moe_layers=6, wall_s=None)["other_s"] == pytest.approx(1.5e-3)


def test_several_attention_instances_step_side_by_side() -> None:
    before = {"attention-0": BEFORE["attention-0"], "attention-1": BEFORE["attention-0"]}
    after = {"attention-0": AFTER["attention-0"], "attention-1": AFTER["attention-0"]}
    two = per_step(before, after, moe_layers=6, wall_s=20 * 10e-3)
    one = per_step(BEFORE, AFTER, moe_layers=6, wall_s=20 * 10e-3)
    assert {**two, "tokens": 80} == pytest.approx(one)


def test_without_a_step_there_is_nothing_to_see() -> None:
    assert per_step(BEFORE, BEFORE, moe_layers=6, wall_s=1.0) == {}


@pytest.mark.parametrize("effort", [FULL, QUICK])
@given(max_model_len=st.integers(2, 1 << 17))
def test_every_point_leaves_room_to_decode(effort: object, max_model_len: int) -> None:
    assert effort in (FULL, QUICK)
    chosen = FULL if effort is FULL else QUICK
    plan = points(chosen, max_model_len=max_model_len)
    assert len(set(plan)) == len(plan)
    assert all(point.prompt >= 1 for point in plan)
    if max_model_len > 2 * LEAST_TOKENS:
        assert all(point.prompt + LEAST_TOKENS <= max_model_len for point in plan)
    assert {point.batch for point in plan} == {0, *chosen.batches}
    assert all(point.batch * point.prompt <= chosen.most_prompt_tokens for point in plan)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (1.23456e-4, "s", "123 µs"),
        (0.0, "s", "0 s"),
        (1.9e10, "B/s", "19 GB/s"),
        (1, "", "1"),
        (3.3e-10, "s", "330 ps"),
        (5e14, "FLOP/s", "500 TFLOP/s"),
    ],
)
def test_quantities_read_well(value: float, unit: str, text: str) -> None:
    assert quantity(value, unit) == text


def test_every_figure_has_a_row() -> None:
    machine = planted.profile()
    figures = {
        "cpu.weight_bytes_s": Figure(value=1.2e10, low=1.1e10, high=float("inf")),
        "inter.byte_s": Figure(value=4e-10, source="taken over"),
    }
    shown = list(rows(replace(machine, figures=figures)))
    assert shown == [
        ("cpu.weight_bytes_s", "weights read", "12 GB/s", "11 GB/s to any"),
        ("inter.byte_s", "a byte of it", "400 ps", "taken over"),
    ]
