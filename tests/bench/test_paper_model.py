"""The paper's cost model and what follows: calibration, choices, gains, the ladder and the day, on small tables."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from benchmarks.paper import calibration, published, systems, throughput
from benchmarks.paper.calibration import bare_profile, calibrate, figure_9_points
from benchmarks.paper.choices import choose, figure_9, figure_16
from benchmarks.paper.day import (
    Capacity,
    Priced,
    capacity_at_percentile,
    day,
    priced,
    priced_janus,
    provisioned,
    reactive,
    within,
)
from benchmarks.paper.ladder import BATCHES, STEPS, figure_12, network_of_figure_12, tpot_s
from benchmarks.paper.motivation import figure_1, figure_2
from benchmarks.paper.overhead import figure_15
from benchmarks.paper.routing import Effort, Routing
from benchmarks.paper.systems import JANUS, SYSTEMS, World
from benchmarks.paper.throughput import Case, Choices, cases_of, figure_8, figure_10, largest_gain, slowness

from janus.core.planning.baselines import separate

SLO_S = 0.2


@pytest.fixture(scope="module")
def bare() -> World:
    return World(
        profile=bare_profile(),
        routing=Routing(popularity=0.8),
        effort=Effort(layers=1, tokens=256, draws=1),
    )


@pytest.fixture(scope="module")
def testbed(bare: World) -> World:
    return replace(bare, profile=calibrate(bare, figure_9_points()).profile)


def test_calibration_finds_the_coefficients_that_were_planted(bare: World) -> None:
    setting = bare.setting(JANUS, "DeepSeek-V2")
    planted = {"layer": 2e-4, "token": 1e-4, "row": 5e-7}
    points = dict.fromkeys(figure_9_points(), 0.0)
    tpots = calibration.tpots(setting, planted, points)
    found = calibrate(bare, dict(zip(points, tpots.tolist(), strict=True)))
    assert found.coefficients == pytest.approx(planted, rel=1e-6)
    assert list(found.found.values()) == pytest.approx(tpots.tolist())
    assert found.profile.device().attention_layer_s == pytest.approx(2e-4)


def test_a_coefficient_below_nothing_is_left_out(bare: World) -> None:
    setting = bare.setting(JANUS, "DeepSeek-V2")
    points = figure_9_points()
    bare_s = calibration.tpots(setting, {"layer": 0.0, "token": 0.0, "row": 0.0}, points)
    faster = calibrate(bare, dict(zip(points, (0.9 * bare_s).tolist(), strict=True)))
    assert set(faster.coefficients.values()) == {0.0}


def test_the_paper_s_points_follow_from_tokens_per_second_and_gpu() -> None:
    assert figure_9_points()[1, 6, 64] == pytest.approx(64 / 99 / 7)
    assert len(figure_9_points()) == 4


def test_the_planner_chooses_within_the_span_that_is_reported_and_not_outside(testbed: World) -> None:
    sixteen = figure_16(testbed)
    seen = 0
    for batch, (a, e, _) in published.CHOICES.items():
        span = sixteen.data["same_choice_between_ms"][str(batch)]
        if span is None:
            continue
        seen += 1
        low, high = span
        names = {
            ms: point.name if (point := choose(testbed, batch, ms / 1e3)) else None for ms in (low - 0.2, low + 0.2)
        }
        assert names[low - 0.2] != f"{a}A{e}E" == names[low + 0.2]
        if high is not None:
            after = choose(testbed, batch, (high + 0.2) / 1e3)
            assert after is not None and after.deployment.devices < a + e
    assert seen, "the cases say nothing"
    assert len(sixteen.rows) == 2 * len(published.CHOICES)


def test_figure_9_reports_the_calibrated_points_and_a_choice_per_objective(bare: World) -> None:
    found = calibrate(bare, figure_9_points())
    nine = figure_9(replace(bare, profile=found.profile), found, (0.05, SLO_S))
    assert [row.paper for row in nine.rows] == [99.0, 240.0, 340.0, 170.0]
    assert {row.kind for row in nine.rows} == {"calibrated"}
    for chosen in nine.data["choices"].values():
        assert [each["slo_ms"] for each in chosen] == [50.0, 200.0]
        assert chosen[1]["tpot_ms"] <= 200.0


def test_gains_are_of_each_system_at_its_best(testbed: World) -> None:
    cases = cases_of(testbed, ("DeepSeek-V2",), (64,), most=16)
    (case,) = cases
    for name, choices in case.choices.items():
        best = case.best(name, SLO_S)
        kept = [each.tokens_per_device_s(systems.load_of(64)) for each in choices.offers if each.step.total_s <= SLO_S]
        assert best is not None and best.tokens_per_device_s(systems.load_of(64)) == max(kept)
    eight = figure_8({"testbed": cases})
    assert [row.paper for row in eight.rows[:4]] == [4.7, 4.7, 2.2, 3.3], "one world"
    assert eight.data["cases"]["testbed"][0]["janus"]["devices"] <= 16


def test_a_system_that_is_slower_is_beaten_by_more(monkeypatch: pytest.MonkeyPatch) -> None:
    def choices(tpot_s: list[float], tpg: list[float]) -> Choices:
        return Choices(offers=[], tpot_s=np.array(tpot_s), tpg=np.array(tpg))

    case = Case(
        model="m",
        batch=1,
        choices={"janus": choices([0.1], [100.0]), "megascale": choices([0.05, 0.09], [50.0, 80.0])},
    )
    assert case.gain("megascale", 0.15) == pytest.approx(100 / 80)
    # At twice the time the better one misses the objective.
    assert case.gain("megascale", 0.15, slower=2.0) == pytest.approx(2 * 100 / 50)
    assert case.gain("megascale", 0.15, slower=4.0) is None
    assert case.gain("megascale", 0.01) is None
    monkeypatch.setitem(published.GAIN, "megascale-infer", 1.5)
    factor = slowness([case], "megascale")
    found = largest_gain([case], "megascale", factor)
    assert factor == pytest.approx(1.2) and found is not None and found.ratio >= 1.5


def test_every_gain_has_a_published_one() -> None:
    assert set(throughput.PAPERS.values()) == set(published.GAIN)
    assert set(throughput.PAPERS) == set(throughput.WORDS) == set(SYSTEMS) - {"janus"}


def test_the_network_of_figure_12_meets_its_first_step(testbed: World) -> None:
    slow, factor = network_of_figure_12(testbed)
    assert factor > 1
    assert tpot_s(slow, STEPS[0], 256) == pytest.approx(published.ONE_PHASE_EGATE_TPOT_S[256], rel=1e-6)
    twelve = figure_12({"a": testbed, "b": slow}, factor)
    assert [row.what for row in twelve.rows if row.kind == "calibrated"] == ["TPOT of 1PC + EGate, B = 256; b"]
    for of_world in twelve.data["tpot_ms"].values():
        assert list(of_world) == [step.name for step in STEPS]
        for batch in BATCHES:
            tpots = [of_world[step.name][str(batch)] for step in STEPS]
            assert min(tpots) == tpots[-1], "the whole system chooses the best way"


def test_figure_10_compares_the_same_numbers_of_instances(testbed: World) -> None:
    ten = figure_10({"testbed": testbed}, model="DeepSeek-V2")
    assert ten.data["lines"]["testbed"]
    for each in ten.data["lines"]["testbed"]:
        assert each["attention"] >= 1
        assert each["janus_ms"] <= each["megascale_ms"] * (1 + 1e-9)


def test_motivation_and_overhead_have_their_figures(bare: World) -> None:
    one, two, fifteen = figure_1(bare), figure_2(), figure_15()
    times = [each["experts_us"] for each in one.data["points"]]
    assert times == sorted(times)
    shares = {row.what: row.ours for row in two.rows if row.unit == "share"}
    assert len(shares) == 3 and all(0.85 < share < 1 for share in shares.values() if share is not None)
    h100 = next(row.ours for row in two.rows if row.what.endswith("H100"))
    assert h100 == pytest.approx(989e12 / 3.35e12 * 32)
    assert [row.ours for row in fifteen.rows if row.what.endswith("GPU")] == [None, None]
    assert all(row.ours for row in fifteen.rows if row.what.endswith("CPU"))


# -- the day -------------------------------------------------------------------------------------------------------


def test_a_day_repeats_under_its_seed_and_is_bursty() -> None:
    minutes = day(1)
    assert minutes.shape == (1440,)
    assert (minutes == day(1)).all()
    assert (minutes != day(2)).any()
    assert minutes.max() > 2.5 * minutes.mean()


def test_the_day_s_janus_is_priced_as_one_deployment_at_a_time_is(testbed: World) -> None:
    setting = testbed.setting(JANUS, "DeepSeek-V2")
    at_once = priced_janus(setting, most=9).capacity(SLO_S, most=9)
    one_by_one = priced(JANUS, setting, most=9).capacity(SLO_S, most=9)
    assert at_once.tokens_s == pytest.approx(one_by_one.tokens_s, rel=1e-9)
    assert at_once.tokens_s[6] == 0 < at_once.tokens_s[7] < at_once.tokens_s[9]


def test_a_percentile_needs_no_fewer_gpus_than_the_mean(testbed: World) -> None:
    setting = testbed.setting(JANUS, "DeepSeek-V2")
    mean, tail = (capacity_at_percentile(setting, SLO_S, percentile, most=10) for percentile in (0.0, 99.0))
    assert (tail.tokens_s <= mean.tokens_s).all()
    assert tail.tokens_s.max() > 0


def test_what_is_provisioned_serves_every_minute_and_what_is_not_foreseen_may_not() -> None:
    capacity = Capacity(tokens_s=np.array([0.0, 10.0, 20.0, 40.0]))
    demand = np.array([5.0, 10.0, 35.0, 15.0, 5.0, 5.0])
    assert capacity.gpus(np.array([0.0, 10.0, 10.1, 100.0])).tolist() == [0, 1, 2, 3]
    known = provisioned(capacity, demand, 2)
    assert known.tolist() == [1, 1, 3, 3, 1, 1]
    assert within(capacity, known, demand) == 1.0
    late = reactive(capacity, demand, 2, 0.0)
    assert late.tolist() == [1, 1, 1, 1, 3, 3]
    assert within(capacity, late, demand) == pytest.approx(25 / 75)
    assert reactive(capacity, demand, 2, 0.5).tolist() == [2, 2, 2, 2, 3, 3]


def test_slower_steps_serve_less_within_the_objective() -> None:
    both = Priced(gpus=np.array([1, 2]), seconds=np.array([0.1, 0.18]), streams=np.array([10.0, 40.0]))
    assert both.capacity(SLO_S, most=3).tokens_s == pytest.approx([0, 100, 40 / 0.18, 40 / 0.18])
    assert both.capacity(SLO_S, slower=2.0, most=3).tokens_s == pytest.approx([0, 50, 50, 50])
    assert both.capacity(SLO_S, most=1).tokens_s == pytest.approx([0, 100])


def test_every_system_has_a_setting_of_its_own_policies(bare: World) -> None:
    for name, system in SYSTEMS.items():
        setting = bare.setting(system, "DeepSeek-V2")
        assert setting.slots == published.SLOTS, name
        found: Any = setting.a_max(8, 64)
        assert 1 < found <= (20 if name in {"monolithic", "one-degree"} else 27)
    offer = separate("x", bare.setting(JANUS, "DeepSeek-V2"), systems.load_of(64), attention=1, experts=6)
    assert not offer.misfit
