"""How the autoscaling benchmark counts: instance-minutes, attainment, what is tried, what the load is made for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from benchmarks.autoscale import candidates
from benchmarks.autoscale.__main__ import fixed
from benchmarks.autoscale.calibration import OneOfEach
from benchmarks.autoscale.quota import Quotas
from benchmarks.autoscale.replay import replay
from benchmarks.autoscale.runs import Watch
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from janus.cluster.state import RunDirectory
from janus.core.planning.steady import Traffic
from janus.runtime.http import HttpServer
from janus.simulation.workloads.workload import Workload
from tests.simulation.clusters import MODEL, ONE_HOST


def test_instance_minutes_are_the_numbers_over_time(tmp_path: Path) -> None:
    watch = Watch(RunDirectory("x", environ={"XDG_RUNTIME_DIR": str(tmp_path)}), Quotas(0.1))
    watch.counts = [(0.0, 1, 1), (30.0, 2, 1), (60.0, 1, 2)]
    assert watch.instance_minutes(120.0) == pytest.approx((2 * 30 + 3 * 30 + 3 * 60) / 60)


def test_fixed_numbers_go_from_the_peak_down_to_one_of_each() -> None:
    assert fixed((3, 5), 3) == [(3, 5), (2, 3), (1, 1)]
    assert fixed((3, 3), 1) == [(3, 3)]
    assert fixed((1, 1), 3) == [(1, 1)]


def test_the_load_is_what_littles_law_says() -> None:
    known = OneOfEach(few=4, many=28, few_s=0.020, many_s=0.044)
    assert known.tpot_s(16) == pytest.approx(0.032)
    # 16 streams that get a token every 32 ms, 64 tokens per request.
    assert known.rate(0.032, 64) == pytest.approx(16 / (64 * 0.032))
    assert OneOfEach(few_s=0.03, many_s=0.03).tpot_s(16) == 0.03


class Endpoint:
    """Streams two tokens, and refuses every third request."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, object]] = []

    async def serve(self, request: Request) -> Response:
        self.bodies.append(await request.json())
        if len(self.bodies) % 3 == 0:
            return JSONResponse({"error": {"message": "full"}}, 429)
        return StreamingResponse(self._events(), media_type="text/event-stream")

    @staticmethod
    async def _events() -> AsyncIterator[bytes]:
        for text in ("a", "b"):
            yield b'data: {"choices": [{"index": 0, "text": "%s", "finish_reason": null}]}\n\n' % text.encode()
            await asyncio.sleep(0)
        yield b'data: {"choices": [], "usage": {"completion_tokens": 2, "prompt_tokens": 1, "total_tokens": 3}}\n\n'
        yield b"data: [DONE]\n\n"


async def test_every_request_is_sent_and_judged() -> None:
    endpoint = Endpoint()
    server = HttpServer(
        Starlette(routes=[Route("/v1/completions", endpoint.serve, methods=["POST"])]), host="127.0.0.1"
    )
    await server.start()
    workload = Workload(
        name="w",
        at_s=np.linspace(0, 0.2, 6),
        prompt=np.arange(1, 7),
        output=np.full(6, 2),
        duration_s=0.3,
    )
    try:
        outcome = await replay(f"http://127.0.0.1:{server.port}/v1", workload, slo_tpot_s=10.0)
        strict = await replay(f"http://127.0.0.1:{server.port}/v1", workload, slo_tpot_s=0.0)
    finally:
        await server.close()
    assert outcome.requests == 6
    assert outcome.client_errors == 2
    assert outcome.slo_attainment == pytest.approx(4 / 6, abs=1e-4)
    assert outcome.output_tokens == 8
    assert strict.slo_attainment <= outcome.slo_attainment
    lengths = [len(body["prompt"]) for body in endpoint.bodies[:6]]  # type: ignore[arg-type]
    assert sorted(lengths) == [1, 2, 3, 4, 5, 6]
    assert {body["max_tokens"] for body in endpoint.bodies} == {2}


def candidate(attention: int, experts: int, tpot_s: float) -> candidates.Candidate:
    return candidates.Candidate(attention=attention, experts=experts, tpot_s=tpot_s)


def test_the_frontier_is_tried_around_the_slo_and_the_peak_in_any_case() -> None:
    every = [
        candidate(1, 1, 0.09),
        candidate(2, 1, 0.06),
        candidate(1, 2, 0.07),  # dominated: as many instances, and slower
        candidate(2, 2, 0.045),
        candidate(3, 1, 0.06),  # dominated: more instances, no quicker
        candidate(3, 2, 0.03),
        candidate(3, 3, 0.02),
    ]
    assert candidates.frontier(every, (3, 3), slo_s=0.05, most=4) == [(3, 3), (2, 2), (2, 1), (3, 2)]
    assert candidates.frontier(every, (3, 3), slo_s=0.05, most=2) == [(3, 3), (2, 2)]
    assert candidates.frontier(every, (3, 3), slo_s=0.05, most=9)[-1] == (1, 1)
    # Where nothing should do, the quickest of the too slow.
    assert candidates.frontier(every, (3, 3), slo_s=0.01, most=2) == [(3, 3), (3, 2)]


def test_the_planner_is_corrected_by_what_was_measured() -> None:
    profile = candidates.apart(ONE_HOST)
    assert profile.host.cores == profile.device().shared_cores == 0
    factor = candidates.correction(MODEL, profile, streams=8, context=100.0, tpot_s=0.5)
    again = candidates.correction(MODEL, profile, streams=8, context=100.0, tpot_s=1.0)
    assert again == pytest.approx(2 * factor)
    traffic = Traffic(requests_s=2.0, prompt_tokens=24.0, output_tokens=64.0)
    found = candidates.priced((2, 3), MODEL, profile, traffic, slo_s=1.0, factor=factor)
    assert {(each.attention, each.experts) for each in found} == {(a, e) for a in (1, 2) for e in (1, 2, 3)}
    by = {(each.attention, each.experts): each.tpot_s for each in found}
    assert min(by.values()) > 0.1
    # To the planner a cluster that is twice as slow has twice the load, and twice the TPOT.
    slower = candidates.priced((2, 3), MODEL, profile, traffic, slo_s=2.0, factor=2 * factor)
    doubled = candidates.priced((2, 3), MODEL, profile, traffic.times(2), slo_s=1.0, factor=factor)
    assert [each.tpot_s for each in slower] == pytest.approx([2 * each.tpot_s for each in doubled])
    assert all(one.tpot_s > each.tpot_s for one, each in zip(doubled, found, strict=True))
