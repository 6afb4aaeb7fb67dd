"""Requests in trouble: clients that leave, overload, instances that die, hang or drain, and the end of the gateway."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import httpx
import pytest

from janus.core.admission import AdmissionConfig
from janus.errors import Unavailable
from janus.text import Tokenizer
from janus_gateway.app import AppConfig
from tests.gateway.cluster import MODEL, EchoCluster, echo_cluster

PATH = "/v1/completions"
LONG = "The quick brown fox jumps over the lazy dog. " * 8


def body(**more: object) -> dict[str, object]:
    return {"model": MODEL, "prompt": LONG, "max_tokens": 400, **more}


class Stream:
    """One streaming request in its own task, read as it comes."""

    def __init__(self, cluster: EchoCluster, **more: object) -> None:
        self.text = ""
        self.errors: list[dict] = []
        self.done = False
        self.status = 0
        self.first = asyncio.Event()
        self.task = asyncio.create_task(self._read(cluster, body(stream=True, **more)), name="stream")

    async def _read(self, cluster: EchoCluster, request: dict[str, object]) -> None:
        async with cluster.client.stream("POST", PATH, json=request) as response:
            self.status = response.status_code
            async for line in response.aiter_lines():
                if line == "data: [DONE]":
                    self.done = True
                elif line.startswith("data: "):
                    event = json.loads(line[6:])
                    if "error" in event:
                        self.errors.append(event["error"])
                    else:
                        self.text += event["choices"][0]["text"]
                    self.first.set()


@pytest.fixture
async def pair(tokenizer: Tokenizer) -> AsyncIterator[EchoCluster]:
    async with echo_cluster(tokenizer, attention=2) as running:
        yield running


def hold(cluster: EchoCluster, steps: int | None) -> None:
    for instance in cluster.instances.values():
        instance.allow(steps)


# -- clients that leave --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_frees_its_work(cluster: EchoCluster, stream: bool) -> None:
    cluster.first.allow(3)
    request = asyncio.create_task(cluster.client.post(PATH, json=body(stream=stream, n=2)), name="request")
    await cluster.first.until(lambda: cluster.first.steps_left == 0)
    request.cancel()  # httpx closes the connection
    with pytest.raises(asyncio.CancelledError):
        await request
    await cluster.first.until(lambda: len(cluster.first.cancelled) == 2)
    assert cluster.first.running == 0
    assert cluster.pool.in_flight == 0
    assert await cluster.metric("janus_gateway_client_disconnects_total") == 1
    assert await cluster.metric("janus_gateway_outstanding_tokens") == 0


async def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_error(cluster: EchoCluster) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", int(cluster.url.rsplit(":", 1)[1]))
    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    assert (await cluster.complete("abc")).status_code == 200


async def test_a_request_has_a_deadline(tokenizer: Tokenizer) -> None:
    async with echo_cluster(tokenizer, config=AppConfig(request_timeout_s=0.3)) as cluster:
        cluster.first.allow(0)
        response = await cluster.complete("abc")
        assert response.status_code == 504
        assert response.json()["error"]["code"] == "request_timeout"
        await cluster.first.until(lambda: cluster.first.running == 0)


# -- overload ------------------------------------------------------------------------------------------------------


async def test_overload_is_refused_at_once_and_the_admitted_finish(tokenizer: Tokenizer) -> None:
    limits = AdmissionConfig(max_requests=8, max_tokens=1 << 20)
    async with echo_cluster(tokenizer, limits=limits) as cluster:
        cluster.first.allow(1)
        admitted = [Stream(cluster) for _ in range(8)]
        await cluster.first.until(lambda: len(cluster.first.submitted) == 8)
        refused = await asyncio.gather(*(cluster.complete("abc") for _ in range(32)))
        for response in refused:
            assert response.status_code == 429
            assert int(response.headers["retry-after"]) >= 1
            assert response.json()["error"]["type"] == "rate_limit_error"
        assert len(cluster.first.submitted) == 8
        cluster.first.allow(None)
        await asyncio.gather(*(stream.task for stream in admitted))
        assert all(stream.text == LONG for stream in admitted)
        assert (await cluster.complete("abc")).status_code == 200


async def test_all_sequences_of_a_request_get_in_or_none(tokenizer: Tokenizer) -> None:
    async with echo_cluster(tokenizer, limits=AdmissionConfig(max_requests=3, max_tokens=1 << 20)) as cluster:
        cluster.first.allow(0)
        response = await cluster.complete("abc", n=4)
        assert response.status_code == 429
        await cluster.first.until(lambda: len(cluster.first.cancelled) == 3)
        assert cluster.pool.in_flight == 0
        cluster.first.allow(None)
        assert (await cluster.complete("abc", n=3)).status_code == 200


async def test_a_burst_beyond_the_links_credit_is_sent_all_the_same(cluster: EchoCluster) -> None:
    """64 frames may be in flight on a link; these are posted in one turn of the loop."""
    responses = await asyncio.gather(*(cluster.complete(["abc"] * 30) for _ in range(4)))
    assert [len(response.json()["choices"]) for response in responses] == [30] * 4
    assert len(cluster.first.submitted) == 120


async def test_requests_that_never_send_their_body_are_bounded_too(tokenizer: Tokenizer) -> None:
    async with echo_cluster(tokenizer, config=AppConfig(max_sequences=2)) as cluster:
        writers = []
        for _ in range(2):
            _, writer = await asyncio.open_connection("127.0.0.1", int(cluster.url.rsplit(":", 1)[1]))
            writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
            await writer.drain()
            writers.append(writer)
        async with asyncio.timeout(10):
            while (refused := await cluster.complete("abc")).status_code == 200:
                pass  # the half requests are on their way
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "1"
        for writer in writers:
            writer.close()
        async with asyncio.timeout(10):
            while (await cluster.complete("abc")).status_code != 200:
                pass


# -- instances that go away ----------------------------------------------------------------------------------------


async def test_streams_survive_the_loss_of_their_instance(pair: EchoCluster) -> None:
    hold(pair, 5)
    streams = [Stream(pair) for _ in range(6)]
    await asyncio.gather(*(stream.first.wait() for stream in streams))
    doomed, other = pair.instances.values()
    assert doomed.submitted
    assert other.submitted
    moved = len(doomed.submitted)
    doomed.state = "failed"
    doomed.crash()
    await other.until(lambda: len(other.submitted) == 6)
    hold(pair, None)
    await asyncio.gather(*(stream.task for stream in streams))
    # Not a token lost, repeated or changed.
    assert [stream.text for stream in streams] == [LONG] * 6
    assert all(resumed.emitted_ids for resumed in other.submitted[-moved:])
    assert await pair.metric("janus_gateway_resubmitted_total") == moved


async def test_a_sequence_waits_for_an_instance_and_goes_on(cluster: EchoCluster) -> None:
    """The only link breaks and comes back, as when one instance restarts its connection."""
    cluster.first.allow(5)
    stream = Stream(cluster)
    await stream.first.wait()
    for link in cluster.peers.links.values():
        link.abort("cable pulled")
    await cluster.first.until(lambda: len(cluster.first.submitted) == 2)
    cluster.first.allow(None)
    await stream.task
    assert stream.text == LONG
    assert len({submit.request_id for submit in cluster.first.submitted}) == 2


@pytest.mark.parametrize("streaming", [True, False])
async def test_without_another_instance_the_loss_is_named(tokenizer: Tokenizer, streaming: bool) -> None:
    async with echo_cluster(tokenizer, recovery_timeout_s=0.2) as cluster:
        cluster.first.allow(5)
        if streaming:
            stream = Stream(cluster)
            await stream.first.wait()
        else:
            request = asyncio.create_task(cluster.complete(LONG, max_tokens=400), name="request")
            await cluster.first.until(lambda: cluster.first.steps_left == 0)
        cluster.first.state = "failed"
        await cluster.publish_view(linked=False)
        if streaming:
            await stream.task
            assert LONG.startswith(stream.text)
            assert [error["code"] for error in stream.errors] == ["instance_lost"]
            assert "attention-0" in stream.errors[0]["message"]
            assert stream.done
        else:
            response = await request
            assert response.status_code == 503
            assert response.json()["error"]["code"] == "instance_lost"
            assert int(response.headers["retry-after"]) >= 1
        assert cluster.pool.in_flight == 0


async def test_a_draining_instance_hands_its_requests_over(pair: EchoCluster) -> None:
    hold(pair, 5)
    streams = [Stream(pair) for _ in range(4)]
    await asyncio.gather(*(stream.first.wait() for stream in streams))
    leaving, other = pair.instances.values()
    leaving.state = "draining"
    await pair.publish_view()
    leaving.refuse_all(Unavailable("the attention instance is shutting down", code="draining"))
    await other.until(lambda: len(other.submitted) == 4)
    hold(pair, None)
    await asyncio.gather(*(stream.task for stream in streams))
    assert [stream.text for stream in streams] == [LONG] * 4
    assert (await pair.complete("abc")).status_code == 200
    assert len(leaving.submitted) == 2


async def test_a_request_that_loses_every_instance_is_given_up(cluster: EchoCluster) -> None:
    """It may be what kills them."""
    cluster.first.allow(0)
    stream = Stream(cluster)
    for attempt in range(5):

        def arrived(wanted: int = attempt + 1) -> bool:
            return len(cluster.first.submitted) == wanted

        await cluster.first.until(arrived)
        for link in list(cluster.peers.links.values()):
            link.abort("crashed again")
    await stream.task
    assert stream.status == 503
    assert len(cluster.first.submitted) == 5


async def test_an_engine_failure_ends_the_stream_with_an_error_event(cluster: EchoCluster) -> None:
    cluster.first.allow(5)
    stream = Stream(cluster)
    await stream.first.wait()
    cluster.first.refuse_all(Unavailable("experts are unavailable: expert-1", code="experts_unavailable"))
    await stream.task
    assert stream.status == 200
    assert [error["code"] for error in stream.errors] == ["experts_unavailable"]
    assert stream.done


async def test_an_engine_failure_before_the_first_token_has_a_status(cluster: EchoCluster) -> None:
    cluster.first.allow(0)
    stream = Stream(cluster)
    await cluster.first.until(lambda: len(cluster.first.submitted) == 1)
    cluster.first.refuse_all(Unavailable("no experts", code="experts_unavailable", retry_after_s=2))
    await stream.task
    assert stream.status == 503


# -- health and the end --------------------------------------------------------------------------------------------


async def health(cluster: EchoCluster) -> httpx.Response:
    return await cluster.client.get("/health")


async def test_health_is_503_with_the_reason_until_requests_would_be_served(cluster: EchoCluster) -> None:
    assert (await health(cluster)).json() == {"status": "ok", "reasons": []}
    cluster.first.state = "joining"
    await cluster.publish_view()
    answer = await health(cluster)
    assert answer.status_code == 503
    assert "no attention instance is ready" in answer.json()["reasons"][0]
    refused = await cluster.complete("abc")
    assert refused.status_code == 503
    assert refused.headers["retry-after"]
    assert (await cluster.client.get("/live")).status_code == 200
    cluster.first.state = "ready"
    await cluster.publish_view()
    assert (await cluster.client.get("/ready")).status_code == 200


async def test_a_restarted_controller_that_knows_nobody_yet_changes_nothing(cluster: EchoCluster) -> None:
    await cluster.publish_view(empty=True)
    assert (await health(cluster)).status_code == 200
    assert (await cluster.complete("abc")).status_code == 200
    cluster.first.state = "failed"
    await cluster.publish_view(linked=False)
    assert (await health(cluster)).status_code == 503


async def test_draining_takes_nothing_new_and_finishes_what_is_there(cluster: EchoCluster) -> None:
    cluster.first.allow(3)
    stream = Stream(cluster)
    await stream.first.wait()
    cluster.health.set("draining", "received SIGTERM")
    assert (await health(cluster)).json()["status"] == "draining"
    refused = await cluster.complete("abc")
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "draining"
    cluster.first.allow(None)
    await asyncio.wait_for(cluster.pool.wait_idle(), 10)
    await stream.task
    assert stream.text == LONG


async def test_metrics_have_the_names_that_dashboards_know(cluster: EchoCluster, tokenizer: Tokenizer) -> None:
    count = len(tokenizer.encode("abcdef"))
    assert (await cluster.complete("abcdef", n=2)).status_code == 200
    assert await cluster.metric("vllm:prompt_tokens_total") == 2 * count
    assert await cluster.metric("vllm:generation_tokens_total") == 2 * (count + 1)
    assert await cluster.metric("vllm:time_to_first_token_seconds_count") == 2
    assert await cluster.metric("vllm:inter_token_latency_seconds_count") == 2 * (count - 1)
    assert await cluster.metric("vllm:request_success_total") == 2
    assert await cluster.metric("vllm:num_requests_running") == 0
    assert await cluster.metric("vllm:num_requests_waiting") == 0
    cluster.first.allow(1)
    stream = Stream(cluster)
    await stream.first.wait()
    assert await cluster.metric("vllm:num_requests_running") == 1
    assert 0 < await cluster.metric("vllm:kv_cache_usage_perc") < 1
    cluster.first.allow(None)
    await stream.task
