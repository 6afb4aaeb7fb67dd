"""The comparison of simulator and cluster: what its points are, and how its errors are summed up."""

from __future__ import annotations

from typing import Any

import pytest
from benchmarks.simulator import speed
from benchmarks.simulator.comparing import summary
from benchmarks.simulator.pace import Pace, memory_gb_s
from benchmarks.simulator.points import POINTS
from benchmarks.simulator.real import Run, at_pace
from benchmarks.simulator.report import text
from benchmarks.simulator.virtual import BATCHER

from janus.chaos.stream import Sample
from janus.simulation.workloads import ClosedLoop


def row(tpot: float, tokens: float, others: float = 0.05) -> dict[str, Any]:
    return {
        "point": "large 1A2E 8 streams 64+96",
        "tpot_ms": 10.0,
        "simulated_tpot_ms": 10 * (1 + tpot),
        "tpot_error": tpot,
        "tokens_per_s": 800.0,
        "simulated_tokens_per_s": 800 * (1 + tokens),
        "tokens_error": tokens,
        "bare_tpot_error": -0.2,
        "bare_tokens_error": 0.4,
        "others_cores": others,
        "memory_gb_s": 34.5,
    }


def test_there_are_ten_points_and_more_which_differ() -> None:
    assert len({point.name for point in POINTS}) == len(POINTS) >= 10
    assert len({point.cluster for point in POINTS}) >= 5
    for point in POINTS:
        workload = point.workload()
        if isinstance(workload, ClosedLoop):
            assert workload.prompt + workload.output <= BATCHER.max_model_len
        else:
            assert [each[0] for each in point.arrivals()] == sorted(workload.at_s.tolist())


def test_points_that_share_a_cluster_follow_each_other() -> None:
    clusters = [point.cluster for point in POINTS]
    starts = [each for index, each in enumerate(clusters) if index == 0 or clusters[index - 1] != each]
    assert len(starts) == len(set(clusters))


def test_runs_count_that_the_machine_was_as_fast_in_as_for_the_profile() -> None:
    def run(tpot_s: float, before: float, after: float) -> Run:
        sample = Sample(sent_at=0.0, pieces_at=[0.0, tpot_s], tokens=2)
        return Run(samples=[sample], wall_s=1.0, others_cores=0.0, pace=Pace(before, after))

    runs = [run(0.010, 35, 34), run(0.014, 35, 25), run(0.011, 33, 36), run(0.020, 22, 21)]
    assert [each.tpot_s for each in at_pace(runs, 35.0, most=9)] == [0.010, 0.011]
    assert at_pace(runs, 0.0, most=9) == runs
    # There will be no more: the nearest ones.
    assert [each.tpot_s for each in at_pace(runs, 35.0, most=4)] == [0.010, 0.011, 0.014]


def test_the_pace_of_this_machine_is_some_gigabytes_per_second() -> None:
    assert 0.1 < memory_gb_s(1) < 10_000


def test_errors_count_either_way() -> None:
    told: list[str] = []
    found = summary([row(-0.1, 0.02), row(0.05, -0.3), row(0.07, 0.0, others=1.2)], told.append)
    assert found["median_error"] == pytest.approx(0.06)
    assert found["worst_error"] == 0.3
    assert found["median_tpot_error"] == 0.07
    assert found["disturbed_points"] == 1
    assert (found["bare_median_error"], found["bare_worst_error"]) == (pytest.approx(0.3), 0.4)
    assert "during 1 of 3 points" in told[0]


def test_the_document_says_what_was_measured_and_how() -> None:
    rows = [row(-0.1, 0.02), row(0.05, -0.3)]
    result = summary(rows, print) | {
        "commit": "abc",
        "date": "2026-11-22",
        "hardware": {"cpu": "EPYC", "cores_used": 2},
        "profile": {"name": "cpu"},
        "profile_memory_gb_s": 35.1,
        "command": "python -m benchmarks.simulator",
        "points": rows,
        "speed": [speed.measure(2, 14, 1.0)],
    }
    written = text(result)
    assert "Commit `abc`, 2026-11-22, EPYC, 2 cores, profile cpu." in written
    assert "| large 1A2E 8 streams 64+96 | 10.00   | 9.00" in written
    assert "-30.0%" in written
    assert "-20.0%, +40.0%" in written
    assert "16 (2A14E)" in written
    assert "Memory was read at 35.1 GB/s while the profile was measured" in written
    assert "| 34.5" in written
