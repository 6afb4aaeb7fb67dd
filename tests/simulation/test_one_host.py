"""A cluster whose instances, gateway and clients share one host: nothing is lost, and all of it waits."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus.core.planning.host import Host
from janus.core.planning.steady import Traffic, steady_state
from janus.simulation.config import Fault
from janus.simulation.report import Report
from janus.simulation.simulator import Simulation
from janus.simulation.workloads import ClosedLoop, Lengths, poisson
from tests.simulation.clusters import MODEL, ONE_HOST, a_max, cluster

#: What gateway and clients take.
WORK = [each.name for each in fields(Host) if each.name != "cores"]
LENGTHS = Lengths(prompt=32, output=40, spread=0)


def closed(attention: int, streams: int, **more: float) -> Report:
    """So many clients that wait for their answers."""
    profile = replace(ONE_HOST, host=replace(ONE_HOST.host, **more)) if more else ONE_HOST
    load = ClosedLoop(streams=streams, requests=4 * streams, prompt=32, output=64)
    return Simulation(cluster(attention, profile=profile), load).run()


@settings(max_examples=10, deadline=None)
@given(
    attention=st.integers(1, 3),
    rate=st.floats(1, 40),
    seed=st.integers(0, 1000),
    dies_s=st.floats(0, 6),
    target=st.sampled_from(["attention", "expert"]),
)
def test_every_request_ends_once_whatever_dies(
    attention: int, rate: float, seed: int, dies_s: float, target: str
) -> None:
    workload = poisson(rate, 8, lengths=LENGTHS, seed=seed)
    config = cluster(attention, profile=ONE_HOST)
    reports = [Simulation(config, workload, seed=seed, faults=[Fault(at_s=dies_s, target=target)]).run() for _ in "ab"]
    assert sum(reports[0].outcomes.values()) == len(workload)
    assert reports[0] == reports[1]


@pytest.mark.parametrize("attention", [1, 2, 3])
def test_who_shares_cores_waits_for_them(attention: int) -> None:
    streams = 8 * attention
    shared = closed(attention, streams)
    idle = closed(attention, streams, **dict.fromkeys(WORK, 0.0))
    assert shared.tpot_s.mean > idle.tpot_s.mean
    assert shared.throughput_tokens_s < idle.throughput_tokens_s
    # Whatever it is that the gateway or the clients take more of.
    for costs in ({"gateway_message_s": 1e-3}, {"gateway_token_s": 3e-4}, {"client_token_s": 3e-4}):
        assert closed(attention, streams, **costs).tpot_s.mean > shared.tpot_s.mean
    busy = closed(attention, streams, gateway_request_s=0.02)
    assert busy.ttft_s.mean > shared.ttft_s.mean
    assert busy.throughput_tokens_s < shared.throughput_tokens_s


def test_a_second_attention_instance_on_the_same_cores_is_no_second_machine() -> None:
    """Its steps want the same cores: the host gives hardly more tokens than with one."""
    one, two, three = (closed(n, 24) for n in (1, 2, 3))
    assert two.throughput_tokens_s < 1.1 * one.throughput_tokens_s
    assert three.throughput_tokens_s < 1.02 * two.throughput_tokens_s


@pytest.mark.parametrize(("attention", "rate", "seconds"), [(1, 2.0, 80), (1, 8.0, 40), (2, 8.0, 40)])
def test_random_arrivals_settle_where_the_planner_says(attention: int, rate: float, seconds: float) -> None:
    """But for requests, whose own work the planner leaves out."""
    host = replace(ONE_HOST.host, gateway_request_s=0.0, client_request_s=0.0)
    profile = replace(ONE_HOST, host=host)
    config = cluster(attention, profile=profile)
    workload = poisson(rate, seconds, lengths=Lengths(prompt=32, output=64, spread=0), seed=4)
    report = Simulation(config, workload).run()
    state = steady_state(
        MODEL,
        profile,
        config.deployment(attention, config.experts),
        Traffic(requests_s=workload.rate, prompt_tokens=32, output_tokens=64),
        a_max=a_max,
        most_streams=32 * attention,
        token_budget=config.batcher.token_budget,
    )
    assert report.tpot_s.mean == pytest.approx(state.tpot_s, rel=0.1)
