"""Streams through the end of processes: a gateway that is told to stop, an attention instance that is killed."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
from benchmarks.load.cluster import RunningCluster, running_cluster

#: tests/e2e/test_faults.py and tests/chaos do the same to more; these are for whoever works on the gateway alone.
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.asyncio(loop_scope="module"),
]

MODEL = Path(__file__).parents[2] / "models" / "janus-tiny"
PROMPT = "It is a truth universally acknowledged, that"
STREAMS = 6


class Reading:
    """One streamed answer, and whether it has begun."""

    def __init__(self) -> None:
        self.text = ""
        self.tokens = 0
        self.begun = asyncio.Event()

    async def run(self, client: httpx.AsyncClient, body: dict[str, object]) -> None:
        streamed = {**body, "stream": True, "stream_options": {"include_usage": True}}
        async with client.stream("POST", "/completions", json=streamed) as response:
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    event = json.loads(line[6:])
                    assert "error" not in event, event
                    self.text += "".join(choice["text"] for choice in event["choices"])
                    self.tokens = (event.get("usage") or {}).get("completion_tokens", 0)
                    self.begun.set()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster() -> AsyncIterator[RunningCluster]:
    arguments = ["--model", str(MODEL), "--attention", "2", "--experts", "1", "--port", "0", "--threads", "1"]
    # The machine may be busy: what is tested is that streams end well, not how fast.
    async with running_cluster([*arguments, "--drain-timeout", "90"]) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(cluster: RunningCluster) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=cluster.url, timeout=60) as http:
        yield http


async def test_streams_outlive_a_killed_attention_instance(cluster: RunningCluster, client: httpx.AsyncClient) -> None:
    """Not a token is lost, repeated or changed, greedy or with a seed."""
    greedy = {"prompt": PROMPT, "max_tokens": 200, "ignore_eos": True, "temperature": 0}
    sampled = greedy | {"temperature": 0.9, "seed": 11}
    alone = [Reading(), Reading()]
    for reading, body in zip(alone, (greedy, sampled), strict=True):
        await reading.run(client, body)

    together = [Reading() for _ in range(STREAMS)]
    async with asyncio.TaskGroup() as tasks:
        for number, reading in enumerate(together):
            body = (greedy, sampled)[number % 2]
            tasks.create_task(reading.run(client, body), name=f"stream-{number}")
        for reading in together:
            await reading.begun.wait()
        cluster.processes["attention-0"].send_signal(signal.SIGKILL)
    for number, reading in enumerate(together):
        assert reading.tokens == 200
        assert reading.text == alone[number % 2].text
    metrics = (await client.get(cluster.url.removesuffix("/v1") + "/metrics")).text
    resumed = next(line for line in metrics.splitlines() if line.startswith("janus_gateway_resubmitted_total"))
    assert float(resumed.rsplit(" ", 1)[1]) > 0


async def test_a_gateway_that_is_told_to_stop_finishes_its_streams(
    cluster: RunningCluster, client: httpx.AsyncClient
) -> None:
    base = cluster.url.removesuffix("/v1")
    readings = [Reading() for _ in range(4)]
    body = {"prompt": PROMPT, "max_tokens": 200, "ignore_eos": True, "temperature": 0}
    async with asyncio.TaskGroup() as tasks:
        for number, reading in enumerate(readings):
            tasks.create_task(reading.run(client, body), name=f"stream-{number}")
        for reading in readings:
            await reading.begun.wait()
        # This connection is there before the end begins, and asks again and again.
        assert (await client.get(f"{base}/health")).status_code == 200
        cluster.processes["gateway-0"].send_signal(signal.SIGTERM)
        async with asyncio.timeout(10):
            while (health := await client.get(f"{base}/health")).status_code == 200:
                pass
        assert health.json()["status"] == "draining"
        assert health.headers["connection"] == "close"
        # The next connection waits in the socket that `janus up` holds, for the gateway that comes after this one.
        served = await client.post("/completions", json={"prompt": "abc", "max_tokens": 4})
        assert served.status_code == 200
    assert [reading.tokens for reading in readings] == [200] * 4
    assert len({reading.text for reading in readings}) == 1
