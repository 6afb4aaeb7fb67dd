"""Observations from reports: windows, restarts, silence, and what instances share."""

from __future__ import annotations

import pytest

from janus.core.latency import LatencyHistogram
from janus.core.scaling import Counts
from janus.core.scaling.contract import Observation
from janus.core.scaling.observing import Observer
from janus.messages.control import Heartbeat, Traffic

COUNTS = Counts(attention=2, experts=1)


class Gateway:
    """A gateway that serves requests of 10 + 20 tokens evenly, and reports every second."""

    def __init__(self, name: str = "gateway-0", *, incarnation: str = "i1") -> None:
        self.name, self.incarnation = name, incarnation
        self.requests = self.refused = 0
        self.tpot = LatencyHistogram()
        self.gaps_s = 0.0

    def serve(self, requests: int, tpot_s: float, *, refused: int = 0) -> None:
        self.requests += requests
        self.refused += refused
        self.gaps_s += requests * 20 * tpot_s
        if requests:
            self.tpot.add(tpot_s, requests)

    def report(self, observer: Observer, now: float) -> None:
        n = self.requests
        traffic = Traffic(
            arrived=n + self.refused,
            refused=self.refused,
            finished=n,
            prompt_tokens=10 * n,
            answer_tokens=20 * n,
            output_tokens=20 * n,
            gaps_s=self.gaps_s,
            gaps=20 * n,
            first_s=0.5 * n,
            firsts=n,
            tpot=self.tpot.pairs(),
            ttft=[(100, n)] if n else [],
        )
        observer.traffic(self.name, self.incarnation, traffic, now)


def run(observer: Observer, *gateways: Gateway, start: int, seconds: int, rate: int, tpot_s: float) -> None:
    for now in range(start, start + seconds):
        for gateway in gateways:
            gateway.serve(rate, tpot_s)
            gateway.report(observer, float(now))


def observe(observer: Observer, now: float, *gateways: Gateway, **other: object) -> Observation:
    names = [gateway.name for gateway in gateways]
    fields: dict[str, object] = {"present": COUNTS, "gateways": names, "attention": ["attention-0"], **other}
    return observer.observe(now, **fields)  # type: ignore[arg-type]


def test_rates_lengths_and_latencies_are_those_of_the_window() -> None:
    observer, gateway = Observer(30.0, percentile=99), Gateway()
    run(observer, gateway, start=0, seconds=60, rate=5, tpot_s=0.2)
    run(observer, gateway, start=60, seconds=60, rate=2, tpot_s=0.05)
    seen = observe(observer, 119.0, gateway)
    assert seen.arrivals_s == pytest.approx(2.0, rel=0.02)
    assert (seen.prompt_tokens, seen.output_tokens) == (10, 20)
    assert seen.output_tokens_s == pytest.approx(40.0, rel=0.02)
    assert seen.tpot_mean_s == pytest.approx(0.05)
    assert seen.tpot_tail_s == pytest.approx(0.05, rel=0.03)
    assert seen.ttft_mean_s == pytest.approx(0.5)
    assert seen.window_s == pytest.approx(30.0, abs=1.1)
    assert seen.tpot_samples == pytest.approx(60, abs=4)
    assert seen.problems == ()


def test_what_clients_saw_before_a_change_does_not_count_and_arrivals_do() -> None:
    observer, gateway = Observer(30.0, percentile=99), Gateway()
    run(observer, gateway, start=0, seconds=60, rate=4, tpot_s=0.5)
    observer.changed(59.5)
    seen = observe(observer, 59.5, gateway)
    assert (seen.window_s, seen.tpot_mean_s, seen.tpot_samples) == (0.0, None, 0)
    assert seen.arrivals_s == pytest.approx(4.0, rel=0.05)
    run(observer, gateway, start=60, seconds=10, rate=4, tpot_s=0.1)
    seen = observe(observer, 69.0, gateway)
    assert seen.window_s == pytest.approx(9.0)
    assert seen.tpot_tail_s == pytest.approx(0.1, rel=0.03)


def test_a_gateway_that_was_there_before_the_controller_is_not_counted_from_its_beginning() -> None:
    observer, gateway = Observer(30.0, percentile=99), Gateway()
    gateway.serve(100_000, 5.0)
    run(observer, gateway, start=0, seconds=10, rate=1, tpot_s=0.1)
    seen = observe(observer, 9.0, gateway)
    assert seen.arrivals_s == pytest.approx(1.0)
    assert seen.tpot_tail_s == pytest.approx(0.1, rel=0.03)


def test_a_gateway_that_restarts_begins_at_nothing() -> None:
    observer, gateway = Observer(30.0, percentile=99), Gateway()
    run(observer, gateway, start=0, seconds=10, rate=7, tpot_s=0.1)
    again = Gateway(incarnation="i2")
    run(observer, again, start=10, seconds=10, rate=3, tpot_s=0.1)
    assert observe(observer, 19.0, again).arrivals_s == pytest.approx(3.0)


def test_gateways_add_up() -> None:
    observer, gateways = Observer(30.0, percentile=50), (Gateway("gateway-0"), Gateway("gateway-1"))
    for now in range(60):
        for gateway, tpot_s in zip(gateways, (0.1, 0.3), strict=True):
            gateway.serve(2, tpot_s, refused=1)
            gateway.report(observer, float(now))
    seen = observe(observer, 59.0, *gateways)
    assert seen.arrivals_s == pytest.approx(6.0, rel=0.02)
    assert seen.refused == pytest.approx(60, abs=4)
    assert seen.tpot_mean_s == pytest.approx(0.2)
    assert seen.tpot_tail_s == pytest.approx(0.1, rel=0.03)


def test_a_gateway_that_is_silent_or_unheard_of_is_a_problem() -> None:
    observer, gateway = Observer(30.0, percentile=99), Gateway()
    run(observer, gateway, start=0, seconds=10, rate=1, tpot_s=0.1)
    seen = observe(observer, 30.0, gateway, Gateway("gateway-1"), problems=["an operation runs"])
    assert seen.problems == (
        "an operation runs",
        "gateway-1 has not reported what clients see",
        "gateway-0 has not reported what clients see for 21 s",
    )
    observer.keep([])
    assert "gateway-0 has not reported what clients see" in observe(observer, 31.0, gateway).problems


def test_the_mean_stands_in_for_the_percentile_where_the_slo_is_about_it() -> None:
    observer, gateway = Observer(30.0, percentile=0), Gateway()
    run(observer, gateway, start=0, seconds=10, rate=1, tpot_s=0.1)
    gateway.serve(1, 3.0)
    gateway.report(observer, 10.0)
    seen = observe(observer, 10.0, gateway)
    assert seen.tpot_tail_s == seen.tpot_mean_s
    assert seen.tpot_mean_s == pytest.approx((10 * 0.1 + 3.0) / 11, rel=0.1)


def test_streams_and_shares_come_from_the_instances() -> None:
    observer = Observer(30.0, percentile=99)
    for now in range(20):
        for name, running in (("attention-0", 4), ("attention-1", 8)):
            beat = Heartbeat(
                state="ready",
                running=running,
                waiting=2 if now % 2 else 0,
                kv_usage=running / 10,
                max_running=16,
                compute_s=0.25 * now,
                wait_s=0.75 * now,
                activated={"expert-0": [3, 5], "expert-1": [4, 4]},
            )
            observer.beat(name, "i1", beat, float(now))
    seen = observe(observer, 19.0, attention=["attention-0", "attention-1"])
    assert (seen.running, seen.queued, seen.streams_most) == (12, 2, 16)
    assert seen.kv_usage == pytest.approx(0.8)
    assert seen.expert_share == pytest.approx(0.75)
    assert seen.a_max == pytest.approx(4.5)
    # One that drains is left out, and a new process is not what the old one was.
    assert observe(observer, 19.0, attention=["attention-0"]).running == 4
    observer.beat("attention-0", "i2", Heartbeat(state="ready", running=1, compute_s=9.0), 20.0)
    assert observe(observer, 20.0, attention=["attention-0"]).running == 1


def test_what_is_kept_is_bounded() -> None:
    observer, gateway = Observer(900.0, percentile=99), Gateway()
    run(observer, gateway, start=0, seconds=3000, rate=1, tpot_s=0.1)
    assert len(observer._gateways["gateway-0"].reports) <= 70
    assert observe(observer, 2999.0, gateway).arrivals_s == pytest.approx(1.0, rel=0.02)
