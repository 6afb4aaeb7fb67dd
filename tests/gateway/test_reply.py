"""The answer as an ASGI response, where the client is the trouble: one that stays, and reads nothing."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from janus.messages.control import SamplingParams
from janus.text import Tokenizer
from janus_gateway import reply
from janus_gateway.backend import News
from janus_gateway.choice import Choice
from janus_gateway.metrics import GatewayMetrics
from janus_gateway.reply import GenerationResponse, Job
from janus_gateway.shapes import CompletionShape
from janus_gateway.spec import GenerationSpec


class Silent:
    """A generation without news; notes its end."""

    def __init__(self) -> None:
        self.closed = asyncio.Event()

    async def read(self) -> list[News]:
        await asyncio.get_running_loop().create_future()
        raise AssertionError("nothing comes")

    def finish(self, index: int) -> None: ...

    def close(self) -> None:
        self.closed.set()


async def stays() -> dict[str, Any]:
    await asyncio.get_running_loop().create_future()
    raise AssertionError("the client never leaves")


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_reads_nothing_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer, stream: bool
) -> None:
    monkeypatch.setattr(reply, "_LAST_WORDS_S", 0.01)
    generation, blocked = Silent(), asyncio.Event()
    spec = GenerationSpec(prompts=("a",), params=SamplingParams(), max_tokens=1, stream=stream)
    now = asyncio.get_running_loop().time()
    job = Job(
        request_id="cmpl-1",
        spec=spec,
        generation=generation,
        choices=[Choice(0, spec, tokenizer)],
        shape=CompletionShape("cmpl-1", "m", tokenizer, logprobs=None, null_usage=False),
        prompt_tokens=1,
        metrics=GatewayMetrics("m"),
        arrived_at=now,
        deadline=now,  # its time is over
    )

    async def send(message: Any) -> None:
        # Nobody computes for it any more, before anybody waits for the client.
        assert generation.closed.is_set()
        blocked.set()
        await asyncio.get_running_loop().create_future()

    async with asyncio.timeout(5):
        await GenerationResponse(job)({"type": "http"}, stays, send)
    assert blocked.is_set()
