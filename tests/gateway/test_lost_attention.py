"""A whole cluster loses an attention instance to SIGKILL: its streams pause, and not a token is lost or changed."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path

import httpx
import pytest
from benchmarks.load.cluster import running_cluster

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


@pytest.mark.cluster
@pytest.mark.timeout(240)
async def test_streams_outlive_a_killed_attention_instance() -> None:
    greedy = {"prompt": PROMPT, "max_tokens": 300, "ignore_eos": True, "temperature": 0}
    sampled = greedy | {"temperature": 0.9, "seed": 11}
    arguments = ["--model", str(MODEL), "--attention", "2", "--experts", "1", "--port", "0", "--threads", "1"]
    async with (
        running_cluster(arguments) as cluster,
        httpx.AsyncClient(base_url=cluster.url, timeout=60) as client,
    ):
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
            assert reading.tokens == 300
            assert reading.text == alone[number % 2].text
        metrics = (await client.get(cluster.url.removesuffix("/v1") + "/metrics")).text
        resumed = next(line for line in metrics.splitlines() if line.startswith("janus_gateway_resubmitted_total"))
        assert float(resumed.rsplit(" ", 1)[1]) > 0
