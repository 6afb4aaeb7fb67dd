"""The load client counts what the server sent, and tells failures apart."""

from __future__ import annotations

import asyncio

from benchmarks.load.client import LoadSpec, Spread, run_load

from janus.chaos.stream import Sample, complete
from janus.core.admission import AdmissionConfig
from janus.errors import RequestError
from janus.text import Tokenizer
from tests.gateway.cluster import EchoCluster, echo_cluster

SPEC = LoadSpec(vocab_size=300, prompt_tokens=8, max_tokens=20)


async def test_a_run_reports_every_request_and_token(cluster: EchoCluster) -> None:
    ended: list[Sample] = []
    spec = LoadSpec(concurrency=4, requests=12, vocab_size=300, prompt_tokens=8, max_tokens=20)
    report = await run_load(f"{cluster.url}/v1", spec, on_sample=ended.append)
    assert report.requests == len(ended) == 12
    assert report.errors == {}
    assert report.output_tokens == 12 * 20
    assert report.output_tokens_per_s > 0
    for spread in (report.ttft_ms, report.tpot_ms, report.itl_ms):
        assert spread is not None
        assert 0 <= spread.p50 <= spread.p99 <= spread.max
    assert len(cluster.first.submitted) == 12
    assert len({tuple(submit.prompt_ids) for submit in cluster.first.submitted}) == 12


async def test_the_text_is_the_servers(cluster: EchoCluster, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("Grüße 日本")
    sample = await complete(f"{cluster.url}/v1", {"prompt": ids, "max_tokens": 50}, timeout_s=10)
    assert sample.ok
    assert sample.text == "Grüße 日本"
    assert sample.tokens == len(ids) + 1
    assert sample.sent_at < sample.pieces_at[0] <= sample.pieces_at[-1] <= sample.ended_at


async def test_failures_are_told_apart(tokenizer: Tokenizer) -> None:
    async with echo_cluster(tokenizer, limits=AdmissionConfig(max_requests=1, max_tokens=1 << 20)) as cluster:
        url = f"{cluster.url}/v1"
        cluster.first.allow(2)
        first = asyncio.create_task(complete(url, SPEC.body(0), timeout_s=20), name="first")
        await cluster.first.until(lambda: cluster.first.steps_left == 0)
        refused = await complete(url, SPEC.body(1), timeout_s=20)
        assert refused.status == 429
        assert refused.retry_after_s is not None
        cluster.first.refuse_all(RequestError("boom"))
        broken = await first
        assert broken.status == 200
        assert "in the stream" in broken.error
        cluster.first.allow(0)
        assert "no end within" in (await complete(url, SPEC.body(2), timeout_s=0.2)).error
    assert "connection failed" in (await complete(url, SPEC.body(3), timeout_s=5)).error


def test_percentiles_of_known_numbers() -> None:
    spread = Spread.of([i / 1000 for i in range(1, 101)])
    assert spread == Spread(mean=50.5, p50=51.0, p90=91.0, p99=100.0, max=100.0)
    assert Spread.of([]) is None
