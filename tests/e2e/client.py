"""A client of the HTTP endpoint that keeps what tests look at: deltas one by one, log-probabilities, errors."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.e2e.waiting import LIMIT_S

Prompt = str | Sequence[int]


@dataclass(kw_only=True)
class Answer:
    """One whole answer, streamed or not."""

    status: int
    text: str = ""
    finish_reason: str | None = None
    usage: dict[str, int] | None = None
    #: Of ``/v1/completions``: tokens, token_logprobs, top_logprobs, text_offset.
    logprobs: dict[str, list[Any]] = field(default_factory=dict)
    #: Streams: the text of every event.
    deltas: list[str] = field(default_factory=list)
    #: Error answers, and errors within a stream.
    error: dict[str, Any] | None = None
    headers: httpx.Headers = field(default_factory=httpx.Headers)

    def take(self, event: dict[str, Any]) -> None:
        """Add one event of a stream."""
        if "error" in event:
            self.error = event["error"]
            return
        self.usage = event.get("usage") or self.usage
        for choice in event["choices"]:
            self.deltas.append(choice["text"])
            self.text += choice["text"]
            self.finish_reason = choice["finish_reason"] or self.finish_reason
            for name, values in (choice["logprobs"] or {}).items():
                self.logprobs.setdefault(name, []).extend(values)


class Client:
    """``/v1/completions``, greedy and for exactly ``max_tokens`` unless a test says otherwise."""

    def __init__(self, base_url: str, *, timeout_s: float = 2 * LIMIT_S) -> None:
        limits = httpx.Limits(max_connections=None)
        self.http = httpx.AsyncClient(base_url=base_url, timeout=timeout_s, limits=limits, trust_env=False)

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.http.aclose()

    async def complete(self, prompt: Prompt, **fields: Any) -> Answer:
        """The answer in one piece."""
        response = await self.http.post("/v1/completions", json=_body(prompt, fields))
        body = response.json()
        if response.status_code != 200:
            return Answer(status=response.status_code, error=body["error"], headers=response.headers)
        choice = body["choices"][0]
        return Answer(
            status=200,
            text=choice["text"],
            finish_reason=choice["finish_reason"],
            usage=body["usage"],
            logprobs=choice["logprobs"] or {},
            headers=response.headers,
        )

    async def stream(self, prompt: Prompt, **fields: Any) -> Answer:
        """The answer as a stream, read to its end."""
        answer = Answer(status=0)
        async for event in self.events(prompt, answer=answer, **fields):
            answer.take(event)
        return answer

    async def events(self, prompt: Prompt, *, answer: Answer | None = None, **fields: Any) -> AsyncGenerator[Any]:
        """The events of a stream as they come, up to ``[DONE]``. Status and a refusal go into ``answer``."""
        answer = answer or Answer(status=0)
        body = _body(prompt, fields) | {"stream": True}
        async with self.http.stream("POST", "/v1/completions", json=body) as response:
            answer.status, answer.headers = response.status_code, response.headers
            if response.status_code != 200:
                answer.error = json.loads(await response.aread())["error"]
                return
            async for line in response.aiter_lines():
                if line == "data: [DONE]":
                    return
                if line:
                    yield json.loads(line.removeprefix("data: "))
        raise AssertionError("the stream ended without [DONE]")


def _body(prompt: Prompt, fields: dict[str, Any]) -> dict[str, Any]:
    given = prompt if isinstance(prompt, str) else list(prompt)
    # A checkpoint's generation_config.json may bring other defaults.
    plain = {"temperature": 0, "top_p": 1, "top_k": 0, "repetition_penalty": 1, "ignore_eos": True, "max_tokens": 64}
    return {"prompt": given, **plain, **fields}
