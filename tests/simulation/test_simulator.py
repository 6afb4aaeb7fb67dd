"""What a simulation must keep to, whatever is simulated: nothing is lost, time is right, the same comes out again."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus.core.admission import AdmissionConfig
from janus.errors import ConfigError
from janus.simulation.batching import SteadyBatcher
from janus.simulation.config import ClusterConfig, Fault, Slo
from janus.simulation.report import Report
from janus.simulation.simulator import Simulation
from janus.simulation.workloads import ClosedLoop, Lengths, Workload, bursty, constant, poisson
from tests.simulation.clusters import BATCHER, DEVICE, PROFILE, cluster

SHORT = Lengths(prompt=40, output=30)


def run(config: ClusterConfig, workload: Workload, **more: Any) -> Report:
    return Simulation(config, workload, **more).run()


def step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SteadyBatcher, "steady_steps", lambda _: 0)


@pytest.mark.parametrize("attention", [1, 3])
def test_skipped_steps_change_nothing(attention: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With no tolerance, runs of alike steps give the times that computing every step gives."""
    config = cluster(attention, tolerance=0.0)
    workload = poisson(30, 20, lengths=SHORT, seed=3)
    quick = Simulation(config, workload)
    skipped = quick.run()
    step_by_step(monkeypatch)
    slow = Simulation(config, workload)
    computed = slow.run()
    assert quick.agenda.events < slow.agenda.events
    assert skipped.outcomes == computed.outcomes
    assert list(quick.records.ttft_s) == pytest.approx(list(slow.records.ttft_s), rel=1e-6, abs=1e-9)
    assert list(quick.records.tpot_s) == pytest.approx(list(slow.records.tpot_s), rel=1e-6, abs=1e-9)
    assert skipped.tokens_per_device_s == pytest.approx(computed.tokens_per_device_s, rel=1e-9)


@settings(max_examples=15, deadline=None)
@given(
    attention=st.integers(1, 3),
    rate=st.floats(1, 120),
    seed=st.integers(0, 1000),
    blocks=st.integers(20, 200),
    faults=st.lists(
        st.tuples(st.floats(0, 8), st.sampled_from(["attention", "expert", "node"]), st.sampled_from([0.5, 2.0, None])),
        max_size=4,
    ),
)
def test_every_request_ends_once_with_all_its_tokens_or_by_name(
    attention: int, rate: float, seed: int, blocks: int, faults: list[tuple[float, str, float | None]]
) -> None:
    """Under too little memory, overload and deaths too. Which tokens come is checked as they come (``Gateway``)."""
    config = cluster(attention, batcher=replace(BATCHER, num_blocks=blocks, max_waiting=50))
    workload = poisson(rate, 6, lengths=SHORT, seed=seed)
    struck = [Fault(at_s=at, target=target, back_s=back) for at, target, back in faults]
    simulation = Simulation(config, workload, seed=seed, faults=struck)
    report = simulation.run()
    assert sum(report.outcomes.values()) == report.requests == len(workload)
    assert simulation.gateway.in_flight == 0
    assert simulation.gateway.admission.stats().tokens == 0
    known = {"finished", "unavailable", "overloaded", "instance_lost", "experts_unavailable", "kv_cache_exceeded"}
    assert set(report.outcomes) <= known
    if not faults and blocks > 100 and rate < 20:
        assert report.outcomes == ({"finished": len(workload)} if len(workload) else {})
    if set(report.outcomes) <= {"finished"}:
        assert report.output_tokens == workload.output.sum()


def test_the_same_comes_out_again() -> None:
    faults = [Fault(at_s=3, target="expert"), Fault(at_s=5, target="attention")]
    config, workload = cluster(3), bursty(20, 15, burst_s=3, lengths=SHORT, seed=5)
    first, again = (run(config, workload, seed=7, faults=faults) for _ in range(2))
    assert first.as_json() == again.as_json()
    assert run(config, workload, seed=8, faults=faults).faults != first.faults


def test_another_process_gives_the_same() -> None:
    """Hashes of strings differ between processes, and must not matter."""
    code = (
        "from janus.simulation.config import Fault\n"
        "from janus.simulation.simulator import Simulation\n"
        "from janus.simulation.workloads import Lengths, poisson\n"
        "from tests.simulation.clusters import cluster\n"
        "faults = [Fault(at_s=2, target='attention'), Fault(at_s=3, target='expert')]\n"
        "workload = poisson(40, 5, lengths=Lengths(prompt=40, output=30), seed=5)\n"
        "print(Simulation(cluster(4), workload, faults=faults).run().as_json())"
    )
    root = Path(__file__).parents[2]
    answers = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(answers) == 1
    assert "finished" in answers.pop()


def test_littles_law_holds_in_a_long_run() -> None:
    """Requests in the cluster = rate of arrivals x mean time, with both sides counted on their own."""
    config, workload = cluster(2), poisson(20, 120, lengths=SHORT, seed=2)
    simulation = Simulation(config, workload)
    seen: list[int] = []

    def look() -> None:
        seen.append(simulation.gateway.in_flight)
        simulation.agenda.after(0.05, look)

    simulation.agenda.after(10.0, look)
    report = simulation.run()
    seen = seen[: int((workload.duration_s - 10) / 0.05)]
    assert sum(seen) / len(seen) == pytest.approx(report.in_flight, rel=0.05)


@pytest.mark.parametrize(
    "change",
    [
        {"weight_bytes_s": 2},
        {"kv_bytes_s": 2},
        {"flops_s": 2},
        {"attention_layer_s": 0.5},
        {"expert_layer_s": 0.5},
        {"step_s": 0.5},
        {"token_s": 0.5},
    ],
)
def test_faster_hardware_is_never_slower(change: dict[str, float]) -> None:
    device = replace(DEVICE, **{name: getattr(DEVICE, name) * factor for name, factor in change.items()})
    faster = replace(PROFILE, devices={"fast": device})
    workloads = [poisson(60, 10, lengths=SHORT, seed=seed) for seed in (1, 2, 3)]
    slow = [run(cluster(2), workload) for workload in workloads]
    fast = [run(cluster(2, profile=faster), workload) for workload in workloads]
    # Which requests share a step is another matter of chance then, worth some tenths of a percent where the change is
    # worth next to nothing.
    assert fmean(each.tpot_s.mean for each in fast) <= 1.005 * fmean(each.tpot_s.mean for each in slow)
    assert fmean(each.in_flight for each in fast) <= 1.005 * fmean(each.in_flight for each in slow)


def test_more_load_is_never_quicker() -> None:
    reports = [run(cluster(2), constant(rate, 20, lengths=Lengths(prompt=32, output=40, spread=0))) for rate in (2, 40)]
    assert reports[0].tpot_s.mean < reports[1].tpot_s.mean
    assert reports[0].slo_attainment == reports[1].slo_attainment == 1.0


def test_what_misses_the_slo_is_no_goodput() -> None:
    workload = constant(5, 10, lengths=Lengths(prompt=32, output=40, spread=0))
    free = run(cluster(1), workload)
    exact = run(cluster(1), workload, slo=Slo(tpot_s=free.tpot_s.p50))
    assert 0 < exact.slo_attainment < 1
    assert exact.goodput_requests_s == pytest.approx(free.goodput_requests_s * exact.slo_attainment)
    assert run(cluster(1), workload, slo=Slo(ttft_s=1e-6)).goodput_tokens_s == 0


def test_what_exceeds_admission_is_refused() -> None:
    config = cluster(1, admission=AdmissionConfig(max_requests=3, max_tokens=100_000))
    report = run(config, constant(100, 5, lengths=SHORT))
    assert report.outcomes["overloaded"] > 0
    assert report.outcomes["finished"] + report.outcomes["overloaded"] == report.requests


# -- faults --------------------------------------------------------------------------------------------------------

STEADY = constant(10, 20, lengths=Lengths(prompt=32, output=100, spread=0))


def test_an_expert_instance_that_others_can_replace_costs_a_moment() -> None:
    calm = run(cluster(2), STEADY)
    report = run(cluster(2), STEADY, faults=[Fault(at_s=5.0, target="expert-1")])
    assert report.outcomes == {"finished": len(STEADY)}
    assert report.faults[0].instances == ("expert-1",)
    assert calm.tpot_s.mean < report.tpot_s.mean < 1.2 * calm.tpot_s.mean


def test_without_spare_replicas_requests_wait_until_an_expert_is_loaded_again() -> None:
    config = cluster(2, slots=12)
    simulation = Simulation(config, STEADY, faults=[Fault(at_s=5.0, target="expert-1", back_s=None)])
    report = simulation.run()
    assert report.outcomes == {"finished": len(STEADY)}
    # The survivors load what is gone, at the device's rate: nobody gets a token meanwhile.
    lost = -(-config.model.experts // 4)
    least = lost / 3 * config.model.expert_bytes * config.model.moe_layers / DEVICE.load_bytes_s
    assert report.tpot_s.mean * 99 > run(config, STEADY).tpot_s.mean * 99
    assert max(simulation.records.tpot_s) * 99 > least


def test_experts_that_stay_away_end_requests_by_name() -> None:
    config = cluster(1, experts=2, slots=16)
    report = run(config, STEADY, faults=[Fault(at_s=5.0, target="expert-1", back_s=None)])
    assert report.outcomes["experts_unavailable"] > 0
    assert set(report.outcomes) <= {"finished", "experts_unavailable", "unavailable"}


def test_requests_of_a_lost_attention_instance_go_on_elsewhere() -> None:
    report = run(cluster(2), STEADY, faults=[Fault(at_s=5.0, target="attention-0")])
    assert report.outcomes == {"finished": len(STEADY)}
    assert report.resumed > 0
    assert report.output_tokens == STEADY.output.sum()


def test_a_node_takes_all_its_processes_along() -> None:
    report = run(cluster(2, experts=8, slots=8), STEADY, faults=[Fault(at_s=5.0, target="expert-node-1")])
    assert report.faults[0].instances == tuple(f"expert-{index}" for index in range(4, 8))
    assert report.outcomes == {"finished": len(STEADY)}


def test_a_cluster_that_cannot_hold_the_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="give at least 4 instances, or 16 slots"):
        cluster(1, experts=2, slots=8)


def test_clients_that_wait_for_their_answers_keep_as_many_requests_in_flight() -> None:
    simulation = Simulation(cluster(2), ClosedLoop(streams=6, requests=60, prompt=20, output=40))
    report = simulation.run()
    assert report.outcomes == {"finished": 60}
    assert report.in_flight == pytest.approx(6, rel=0.02)
    assert report.output_tokens == 60 * 40
    assert report.duration_s == pytest.approx(report.ended_s)
