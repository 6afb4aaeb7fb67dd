"""A client of the OpenAI-compatible endpoint that streams: text as it comes, and what it cost."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import httpx

from janus.errors import JanusError


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Output tokens of one answer, and how fast they came. ``tpot_ms`` is None for fewer than two tokens."""

    tokens: int
    ttft_s: float
    total_s: float
    finish_reason: str

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.total_s if self.total_s > 0 else 0.0

    @property
    def tpot_ms(self) -> float | None:
        return 1000 * (self.total_s - self.ttft_s) / (self.tokens - 1) if self.tokens > 1 else None

    def __str__(self) -> str:
        tpot = "" if self.tpot_ms is None else f", TPOT {self.tpot_ms:.1f} ms"
        return f"{self.tokens} tokens in {self.total_s:.2f} s: {self.tokens_per_s:.0f} tokens/s, TTFT " + (
            f"{1000 * self.ttft_s:.0f} ms{tpot}"
        )


async def stream(url: str, path: str, body: dict[str, Any], show: Callable[[str], None]) -> Usage:
    """POST ``body`` to ``url/v1/path`` with streaming, pass each piece of text to ``show``; return the cost.

    Raises:
        JanusError: the endpoint cannot be reached, refuses, or breaks off; the message carries its own words.
    """
    request = {**body, "stream": True, "stream_options": {"include_usage": True}}
    start = time.monotonic()
    first = 0.0
    tokens, reason = 0, ""
    try:
        async with httpx.AsyncClient(timeout=httpx.Timeout(10.0, read=120.0), trust_env=False) as client:
            async for event in _events(client, f"{url}/v1/{path}", request):
                for choice in event.get("choices", []):
                    piece = choice["delta"].get("content") if "delta" in choice else choice.get("text")
                    if piece:
                        first = first or time.monotonic()
                        show(piece)
                    reason = choice.get("finish_reason") or reason
                tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
    except httpx.HTTPError as error:
        raise JanusError(f"{url}: {type(error).__name__} {error}; is the cluster up? see janus status") from error
    now = time.monotonic()
    return Usage(tokens=tokens, ttft_s=(first or now) - start, total_s=now - start, finish_reason=reason)


async def _events(client: httpx.AsyncClient, url: str, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    """Yield the events of one server-sent stream."""
    async with client.stream("POST", url, json=body) as response:
        if response.status_code != 200:
            raise JanusError(f"{url}: {response.status_code} {_problem(await response.aread())}")
        async for line in response.aiter_lines():
            data = line.removeprefix("data:").strip()
            if not line.startswith("data:") or data == "[DONE]":
                continue
            event: dict[str, Any] = json.loads(data)
            if "error" in event:
                raise JanusError(f"{url}: {event['error'].get('message', event['error'])}")
            yield event


def _problem(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace")[:200]
