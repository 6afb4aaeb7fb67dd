"""Workloads: the rate that was asked for, lengths that are cut where they must be, and traces with clear errors."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from janus.errors import ConfigError
from janus.simulation.workloads import (
    ClosedLoop,
    Lengths,
    Workload,
    bursty,
    constant,
    diurnal,
    gamma,
    poisson,
    read_trace,
    workload_of,
)

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,4808,10
2023-11-16 18:17:04.0319600,3180,8
2023-11-16 18:17:13.9799600,110,27
"""
BURST = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
45,ChatGPT,472,18,490,Conversation log
5,ChatGPT,1087,230,1317,Conversation log
118,GPT-4,417,0,417,API log
"""


def trace(directory: Path, text: str) -> Path:
    path = directory / "trace.csv"
    path.write_text(text)
    return path


@pytest.mark.parametrize("make", [constant, poisson, partial(diurnal, period_s=4000), partial(bursty, burst_s=2)])
def test_the_mean_rate_is_the_one_asked_for(make: Callable[..., Workload]) -> None:
    workload = make(10, 40_000, lengths=Lengths(), seed=3)
    assert workload.rate == pytest.approx(10, rel=0.06)
    assert workload.prompt.mean() == pytest.approx(16, rel=0.03)
    assert workload.output.mean() == pytest.approx(256, rel=0.03)


def test_the_same_seed_gives_the_same_requests() -> None:
    first, again, other = (poisson(5, 100, lengths=Lengths(), seed=seed) for seed in (1, 1, 2))
    assert first.at_s.tolist() == again.at_s.tolist()
    assert first.at_s.tolist() != other.at_s.tolist()


def test_gaps_have_the_variation_asked_for() -> None:
    for cv in (0.5, 1.0, 3.0):
        gaps = np.diff(gamma(10, 20_000, cv=cv, lengths=Lengths(), seed=1).at_s)
        assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.05)


def test_bursts_and_days_reach_their_peak() -> None:
    assert bursty(20, 30_000, peak_to_mean=7.5, lengths=Lengths()).peak_to_mean(20) == pytest.approx(7.5, rel=0.15)
    day = diurnal(20, 7200, peak_to_mean=4, period_s=3600, lengths=Lengths())
    counts = np.bincount((day.at_s % 3600 // 120).astype(int))
    assert counts.argmax() in range(12, 18)
    assert counts.max() / counts.mean() == pytest.approx(4, rel=0.1)
    assert counts.argmin() in (0, 1, 2, 27, 28, 29)


def test_lengths_can_be_all_alike() -> None:
    workload = constant(10, 10, lengths=Lengths(prompt=7, output=9, spread=0))
    assert set(workload.prompt.tolist()) == {7}
    assert set(workload.output.tolist()) == {9}


def test_a_slice_begins_at_zero_and_a_factor_brings_requests_sooner() -> None:
    workload = constant(10, 100, lengths=Lengths())
    part = workload.between(20, 30)
    assert (len(part), part.duration_s, part.at_s[0]) == (100, 10, pytest.approx(0.0))
    assert part.output.tolist() == workload.output[200:300].tolist()
    fast = part.faster(4)
    assert (len(fast), fast.duration_s, fast.rate) == (100, 2.5, 40)
    for start, end in ((-1, 5), (5, 5), (100, 110)):
        with pytest.raises(ConfigError, match="slice"):
            workload.between(start, end)
    with pytest.raises(ConfigError, match="positive factor"):
        workload.faster(0)


def test_what_exceeds_the_context_is_cut() -> None:
    workload = Workload(
        name="x",
        at_s=np.arange(4.0),
        prompt=np.array([10, 900, 900, 10]),
        output=np.array([10, 10, 900, 900]),
        duration_s=4.0,
    )
    cut = workload.within(100)
    assert cut.prompt.tolist() == [10, 90, 50, 10]
    assert cut.output.tolist() == [10, 10, 50, 90]


# -- traces --------------------------------------------------------------------------------------------------------


def test_azure_traces_are_read(tmp_path: Path) -> None:
    workload = read_trace(trace(tmp_path, AZURE))
    assert workload.at_s.tolist() == pytest.approx([0.0, 0.052, 10.0])
    assert workload.prompt.tolist() == [4808, 3180, 110]
    assert workload.output.tolist() == [10, 8, 27]
    assert workload.duration_s == pytest.approx(15.0)


def test_burstgpt_traces_are_read_in_order_of_time_without_failures(tmp_path: Path) -> None:
    workload = read_trace(trace(tmp_path, BURST))
    assert workload.at_s.tolist() == [0.0, 40.0]
    assert workload.prompt.tolist() == [1087, 472]
    assert workload.left_out == 1


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "line 1: the columns are missing"),
        ("a,b\n1,2\n", "line 1: the columns are a, b"),
        (AZURE + "yesterday,1,2\n", "line 5: 'yesterday,1,2' is no request of a azure trace"),
        (BURST + "7,ChatGPT,x,1,1,API log\n", "line 5: '7,ChatGPT,x,1,1,API log'"),
        (BURST + "7,ChatGPT\n", "line 5: '7,ChatGPT'"),
        ("Timestamp,Request tokens,Response tokens\n1,2,0\n", "no request with a prompt and an answer"),
    ],
)
def test_what_is_wrong_in_a_trace_is_told_by_file_and_line(tmp_path: Path, text: str, problem: str) -> None:
    path = trace(tmp_path, text)
    with pytest.raises(ConfigError) as error:
        read_trace(path)
    assert str(path) in str(error.value)
    assert problem in str(error.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_trace(tmp_path / "none.csv")


# -- in words ------------------------------------------------------------------------------------------------------


def test_workloads_in_words() -> None:
    workload = workload_of("poisson:20,prompt=100,output=50,spread=0", duration_s=50)
    assert workload.rate == pytest.approx(20, rel=0.1)
    assert set(workload.prompt.tolist()) == {100}
    assert workload_of("bursty:5,peak=3,burst=10,calm=0.2", duration_s=500).name == "bursty"
    assert workload_of("diurnal:5,peak=3,period=600", duration_s=600).name == "diurnal"
    assert workload_of("gamma:5", duration_s=60).name == "gamma"


def test_a_file_is_a_workload_too(tmp_path: Path) -> None:
    path = trace(tmp_path, AZURE)
    assert len(workload_of(str(path), duration_s=0)) == 3
    assert len(workload_of(str(path), duration_s=5)) == 2


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("poison:3", "neither a file nor a kind"),
        ("poisson", "neither a file nor a kind"),
        ("poisson:fast", "the rate of 'poisson:fast' is 'fast'"),
        ("poisson:0", "rate: is 0"),
        ("poisson:3,cv=2", "poisson takes prompt=, output=, spread="),
        ("gamma:3,cv", "gamma takes cv="),
        ("gamma:3,cv=0", "cv: is 0"),
        ("bursty:3,peak=0.5", "peak: 0.5 with calm 0.5"),
        ("constant:3,prompt=0", "prompt: is 0 tokens"),
        ("constant:3,spread=9", "spread: is 9"),
    ],
)
def test_words_that_make_no_sense(text: str, problem: str) -> None:
    with pytest.raises(ConfigError) as error:
        workload_of(text, duration_s=10)
    assert problem in str(error.value)


def test_a_closed_loop_needs_clients() -> None:
    with pytest.raises(ConfigError, match="streams"):
        ClosedLoop(streams=0, requests=1, prompt=1, output=1)
