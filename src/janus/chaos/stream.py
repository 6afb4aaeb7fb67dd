"""One streamed completion over a raw asyncio connection.

A load client shares the machine with what it measures, so it does next to nothing while tokens arrive: it notes the
time and keeps the bytes. Everything else (HTTP, JSON, counting) is done when the answer is over.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit


@dataclass(slots=True, kw_only=True)
class Sample:
    """What became of one request. Times are seconds of ``time.perf_counter``."""

    sent_at: float
    status: int = 0
    #: Empty when the whole answer arrived.
    error: str = ""
    retry_after_s: float | None = None
    #: Arrival of each piece of text, and how many output tokens the server counted.
    pieces_at: list[float] = field(default_factory=list)
    text: str = ""
    tokens: int = 0
    #: With ``logprobs`` in the request: what each output token reads, and when it arrived.
    token_texts: list[str] = field(default_factory=list)
    tokens_at: list[float] = field(default_factory=list)
    ended_at: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether the request was answered to its end."""
        return not self.error

    @property
    def ttft_s(self) -> float:
        """Time to the first piece of text."""
        return self.pieces_at[0] - self.sent_at

    @property
    def tpot_s(self) -> float:
        """Mean time per output token after the first."""
        return (self.pieces_at[-1] - self.pieces_at[0]) / max(1, self.tokens - 1)


class _Reader(asyncio.Protocol):
    """Collects (time, bytes) until the connection ends."""

    def __init__(self, begun: asyncio.Event | None = None) -> None:
        self._begun = begun
        self.received: list[tuple[float, bytes]] = []
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self.received.append((time.perf_counter(), data))
        if self._begun is not None and b"data: " in data:
            self._begun.set()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_result(None)


async def complete(
    url: str, body: Mapping[str, Any], *, timeout_s: float, api_key: str = "", begun: asyncio.Event | None = None
) -> Sample:
    """Send one request to ``url`` (the base, ending in ``/v1``) and read its stream to the end.

    ``begun`` is set when the first event is there. Failures are told in the sample, not raised. Cancelled, it closes
    the connection.
    """
    parts = urlsplit(url)
    payload = json.dumps(dict(body) | {"stream": True, "stream_options": {"include_usage": True}}).encode()
    head = (
        f"POST {parts.path}/completions HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(payload)}\r\nConnection: close\r\n"
    )
    if api_key:
        head += f"Authorization: Bearer {api_key}\r\n"
    sample = Sample(sent_at=time.perf_counter())
    transport: asyncio.Transport | None = None
    reader = None
    try:
        async with asyncio.timeout(timeout_s):
            loop = asyncio.get_running_loop()
            transport, reader = await loop.create_connection(
                lambda: _Reader(begun), parts.hostname or "", parts.port or 80
            )
            sample.sent_at = time.perf_counter()
            transport.write(head.encode() + b"\r\n" + payload)
            await reader.closed
    except TimeoutError:
        sample.error = f"no end within {timeout_s:g} s"
    except OSError as error:
        sample.error = f"connection failed: {error}"
    finally:
        if transport is not None:
            transport.abort()
    sample.ended_at = time.perf_counter()
    if reader is not None:
        _read(sample, reader.received)
    return sample


def _read(sample: Sample, received: list[tuple[float, bytes]]) -> None:
    raw = b"".join(data for _, data in received)
    head, separator, rest = raw.partition(b"\r\n\r\n")
    if not separator:
        sample.error = sample.error or "the connection closed before an answer"
        return
    lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    sample.status = int(lines[0].split(" ", 2)[1])
    chunked = headers.get("transfer-encoding", "").lower() == "chunked"
    starts = _arrivals(received)
    offset = len(head) + 4
    chunks = list(_chunks(rest, offset)) if chunked else [(offset, rest)]
    if sample.status != 200:
        retry = headers.get("retry-after")
        sample.retry_after_s = float(retry) if retry else None
        body = b"".join(data for _, data in chunks).decode(errors="replace")
        sample.error = sample.error or f"{sample.status}: {body[:300]}"
        return
    _read_events(sample, chunks, starts)


def _chunks(rest: bytes, offset: int) -> list[tuple[int, bytes]]:
    """The chunks of a chunked body, each with where its last byte is in the whole answer."""
    chunks: list[tuple[int, bytes]] = []
    at = 0
    while True:
        end = rest.find(b"\r\n", at)
        size = int(rest[at:end], 16) if end > at else 0
        if size == 0:
            return chunks
        at = end + 2 + size
        chunks.append((offset + at, rest[end + 2 : at]))
        at += 2


def _arrivals(received: list[tuple[float, bytes]]) -> list[tuple[int, float]]:
    """(bytes received so far, time) after each read."""
    total, arrivals = 0, []
    for at, data in received:
        total += len(data)
        arrivals.append((total, at))
    return arrivals


def _read_events(sample: Sample, chunks: list[tuple[int, bytes]], arrivals: list[tuple[int, float]]) -> None:
    position, done, pending = 0, False, b""
    for end, data in chunks:
        while arrivals[position][0] < end and position + 1 < len(arrivals):
            position += 1
        *blocks, pending = (pending + data).split(b"\n\n")
        for block in blocks:
            payload = block.removeprefix(b"data: ")
            if payload == b"[DONE]":
                done = True
                continue
            event = json.loads(payload)
            if "error" in event:
                sample.error = f"in the stream: {event['error']}"
                continue
            if event.get("usage"):
                sample.tokens = event["usage"]["completion_tokens"]
            for choice in event["choices"]:
                sample.text += choice["text"]
                sample.pieces_at.append(arrivals[position][1])
                texts = (choice.get("logprobs") or {}).get("tokens", ())
                sample.token_texts += texts
                sample.tokens_at += [arrivals[position][1]] * len(texts)
    if not done:
        sample.error = sample.error or "the stream broke off"
    elif not sample.pieces_at:
        sample.error = sample.error or "the answer has no text"
