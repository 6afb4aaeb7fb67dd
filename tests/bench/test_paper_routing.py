"""The paper's a_max: routing that is fitted finds what was planted; rows say how far apart two figures are."""

from __future__ import annotations

import numpy as np
import pytest
from benchmarks.paper import published
from benchmarks.paper.a_max import LINES, figure_13, figure_17, fit_column
from benchmarks.paper.routing import OURS, PAPER, PLACEMENTS, Effort, Fit, Routing, column, fit, table_of, trace_of
from benchmarks.paper.rows import Row

from janus.core.placing.contract import Activity, Host, PlacingRequest
from janus.core.planning.sizes import ModelSizes

MODEL = ModelSizes(
    name="small",
    hidden=64,
    layers=2,
    moe_layers=2,
    experts=32,
    top_k=4,
    expert_params=1000,
    attention_params=1000,
    shared_params=0,
    dense_params=0,
    embedding_params=0,
    head_params=0,
    kv_elements=8,
    context_flops=8,
)
EFFORT = Effort(layers=2, tokens=1024, draws=8)
SIZES = (2, 8, 32)
INSTANCES, SLOTS = 4, 10


def a_max(routing: Routing) -> dict[int, float]:
    table = table_of(MODEL, routing, PAPER, slots=SLOTS, instances=(INSTANCES,), sizes=SIZES, effort=EFFORT)
    return {size: value for size, value in column(table, INSTANCES).items() if size in SIZES}


def fitted(wanted: dict[int, float], **how: object) -> Fit:
    return fit(MODEL, wanted, instances=INSTANCES, slots=SLOTS, effort=EFFORT, **how)  # type: ignore[arg-type]


def test_a_fit_finds_the_exponent_that_was_planted() -> None:
    found = fitted(a_max(Routing(popularity=0.9)))
    assert found.routing.popularity == pytest.approx(0.9, abs=0.15)
    assert found.error < 0.02
    assert found.fitted == pytest.approx(a_max(Routing(popularity=0.9)), rel=0.05)


def test_a_fit_finds_the_family_that_was_planted() -> None:
    wanted = a_max(Routing(popularity=0.3, unused=0.5))
    alone, both = fitted(wanted), fitted(wanted, families=(Routing(), Routing(unused=0.5)))
    assert both.routing.unused == 0.5
    assert both.error < alone.error


def test_skew_activates_fewer_experts_and_the_same_routing_is_the_same() -> None:
    even, skewed = a_max(Routing()), a_max(Routing(popularity=2.0))
    assert all(skewed[size] < even[size] for size in SIZES)
    assert a_max(Routing()) == even
    trace = trace_of(MODEL.experts, MODEL.top_k, Routing(unused=0.5), EFFORT)
    assert trace.shape == (EFFORT.layers, EFFORT.tokens, MODEL.top_k)
    assert {len(np.unique(layer)) for layer in trace} == {16}


@pytest.mark.parametrize("name", ["paper", "tokens"])
def test_others_placements_hold_every_expert_and_need_not_hold_it_twice(name: str) -> None:
    counts = np.zeros((1, 8))
    counts[0, 0] = 100.0
    request = PlacingRequest(
        num_layers=1,
        num_experts=8,
        hosts=tuple(Host(name=f"h{index}", capacity=3) for index in range(4)),
        fill=3,
        activity=Activity(counts=counts),
    )
    (layer,) = PLACEMENTS[name](request)
    replicas = np.bincount(np.concatenate([np.array(held) for held in layer]), minlength=8)
    assert replicas.min() == 1
    assert replicas[0] == 4


def test_figures_13_and_17_have_every_figure_of_the_paper() -> None:
    effort = Effort(layers=1, tokens=256, draws=1)
    found = fit_column(effort, readings=(6, 8), families=(Routing(unused=0.3),), steps=1)
    assert {each.instances for each in found.readings} == {6, 8}
    assert found.best.error == min(each.error for each in found.readings)
    assert found.labelled.instances == published.FITTED_COLUMN
    seventeen = figure_17(found, effort)
    for words in ("as labelled", "read as"):
        rows = [row for row in seventeen.rows if words in row.what]
        assert [row.paper for row in rows] == list(published.A_MAX.values())
        assert {row.kind for row in rows if row.what.startswith("a_max, n_e = 6,")} == {"fitted"}
        assert {row.kind for row in rows if not row.what.startswith("a_max, n_e = 6,")} == {"predicted"}
    for each in seventeen.data["left_by_first_column"]:
        assert each["per_instance"] * each["instances"] == pytest.approx(each["active_at_most"], abs=0.1)
    thirteen = figure_13(found.best.routing, effort)
    assert [each["instances"] for each in thirteen.data["lines"]] == list(published.BELOW_EPLB)
    assert all(set(each["a_max"]) == set(LINES) for each in thirteen.data["lines"])
    assert OURS != PAPER


@pytest.mark.parametrize(
    ("paper", "ours", "difference"),
    [
        (10.0, 11.0, 0.1),
        ((1.0, 2.0), 1.5, 0.0),
        ((2.0, 1.0), 2.2, 0.1),
        ((1.0, 2.0), 0.9, -0.1),
        ((0.0, 20.0), 7.0, 0.0),
        (None, 1.0, None),
        (1.0, None, None),
    ],
)
def test_a_row_says_how_far_apart_two_figures_are(
    paper: float | tuple[float, float] | None, ours: float | None, difference: float | None
) -> None:
    row = Row(figure="1", what="x", unit="y", paper=paper, ours=ours, kind="predicted")
    assert row.difference == (None if difference is None else pytest.approx(difference))
    written = row.as_json()
    assert {"figure", "what", "unit", "paper", "ours", "difference", "kind", "why"} == set(written)
    assert not isinstance(written["paper"], tuple)
