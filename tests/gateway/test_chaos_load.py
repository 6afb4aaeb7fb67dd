"""The load of the chaos suite against a gateway: what streams ask, when they end, and what is told of failures."""

from __future__ import annotations

import asyncio
import random

import pytest

from janus.chaos.judge import judge
from janus.chaos.load import Running, undisturbed
from janus.chaos.scenario import Load
from janus.errors import JanusError, RequestError
from tests.gateway.cluster import EchoCluster
from tests.waiting import begun, turns

PROMPTS = ("one two three", "Grüße aus 日本", "four")
LOAD = Load(streams=3, max_tokens=20)


def running(cluster: EchoCluster, load: Load = LOAD) -> Running:
    return Running(f"{cluster.url}/v1", load, random.Random(1), PROMPTS)


async def test_undisturbed_answers_are_told_token_by_token(cluster: EchoCluster) -> None:
    found = await undisturbed(f"{cluster.url}/v1", LOAD, PROMPTS * 2)
    assert set(found) == set(PROMPTS)
    assert all(len(tokens) == 20 for tokens in found.values())
    assert len(cluster.first.submitted) == len(PROMPTS), "each prompt is asked once"


async def test_streams_go_on_until_the_load_is_over_and_end_their_answers(cluster: EchoCluster) -> None:
    expected = await undisturbed(f"{cluster.url}/v1", LOAD, PROMPTS)
    load = running(cluster)
    async with asyncio.TaskGroup() as group:
        group.create_task(load.run(), name="load")
        await turns()
        await load.until_begun(timeout_s=10)
        await cluster.first.until(lambda: len(cluster.first.submitted) >= 12)
        load.over.set()
    assert len(load.requests) >= 9
    for request in load.requests:
        assert judge(expected[request.prompt], request.sample.token_texts, whole=True).right
        assert len(request.sample.tokens_at) == len(request.sample.token_texts)


async def test_with_a_rate_streams_ask_at_random_moments(cluster: EchoCluster) -> None:
    load = running(cluster, Load(streams=3, max_tokens=5, rate=100.0))
    async with asyncio.TaskGroup() as group:
        group.create_task(load.run(), name="load")
        await cluster.first.until(lambda: len(cluster.first.submitted) >= 6)
        load.over.set()
    assert all(request.sample.ok for request in load.requests)


async def test_what_breaks_is_in_the_sample_and_the_stream_asks_again(cluster: EchoCluster) -> None:
    load = running(cluster)
    cluster.first.allow(4)
    async with asyncio.TaskGroup() as group:
        group.create_task(load.run(), name="load")
        await turns()
        await load.until_begun(timeout_s=10)
        await cluster.first.until(lambda: cluster.first.steps_left == 0)
        cluster.first.refuse_all(RequestError("boom"))
        cluster.first.allow(None)
        await cluster.first.until(lambda: len(cluster.first.submitted) >= 2 * LOAD.streams)
        load.over.set()
    errors = [request.sample.error for request in load.requests if not request.sample.ok]
    assert len(errors) == LOAD.streams
    assert all("boom" in error for error in errors)


async def test_a_load_that_does_not_begin_says_why(cluster: EchoCluster) -> None:
    load = running(cluster)
    cluster.first.allow(0)
    task = await begun(load.run(), name="load")
    with pytest.raises(JanusError, match=r"3 of 3 streams have no token after 0\.2 s"):
        await load.until_begun(timeout_s=0.2)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    with pytest.raises(JanusError, match="no undisturbed answer to"):
        await undisturbed("http://127.0.0.1:9/v1", LOAD, PROMPTS)
