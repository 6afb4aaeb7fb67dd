"""The answer to a generation request, as an ASGI response: streamed or whole, and over when the client is gone."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

import structlog
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from janus.errors import RequestError
from janus_gateway.backend import Generation
from janus_gateway.choice import Choice, Piece
from janus_gateway.errors import RequestTimeout, error_body, error_response
from janus_gateway.metrics import GatewayMetrics
from janus_gateway.shapes import DONE, Shape, Usage, event
from janus_gateway.spec import GenerationSpec

log = structlog.get_logger()

#: How long a client may take to read the error that ends its answer.
_LAST_WORDS_S = 5.0

_SSE_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would collect the events otherwise
]


class _ClientGone(Exception):
    """The client has closed its connection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A generation that runs, and how to word what it gives."""

    request_id: str
    spec: GenerationSpec
    generation: Generation
    choices: list[Choice]
    shape: Shape
    prompt_tokens: int
    metrics: GatewayMetrics
    #: On the loop's clock.
    arrived_at: float
    #: On the loop's clock; after it the client gets an error.
    deadline: float


class GenerationResponse(Response):
    """Owns the generation: whatever ends the response closes it, so no work is left on any server."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self._job = job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the response. Cancelled, it cancels the generation."""
        job = self._job
        answer = _Answer(send, job.request_id)
        try:
            await self._answer_or_disconnect(answer, receive)
            self._log_end()
        except* _ClientGone:
            job.metrics.disconnects.inc()
            log.info("client_gone", request_id=job.request_id, tokens=self._usage().completion_tokens)
        except* RequestError as group:
            error = _first(group)
            job.metrics.refused(error.status, error.code)
            log.warning("request_failed", request_id=job.request_id, code=error.code, problem=error.message)
            job.generation.close()  # whoever reads its end slowly, nobody computes for it any more
            # A client that reads nothing would keep this waiting, and its connection, for as long as it likes.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LAST_WORDS_S):
                    if answer.started:
                        # The status line is out; the stream's last words have to say it.
                        body = error_body(error.status, error.message, param=error.param, code=error.code)
                        await answer.write(event(body) + DONE, more=False)
                    else:
                        await error_response(error)(scope, receive, send)
        finally:
            job.generation.close()

    async def _answer_or_disconnect(self, answer: _Answer, receive: Receive) -> None:
        async with asyncio.TaskGroup() as tasks:
            watch = tasks.create_task(_watch(receive), name=f"disconnect[{self._job.request_id}]")
            try:
                async with asyncio.timeout_at(self._job.deadline):
                    await (self._stream(answer) if self._job.spec.stream else self._whole(answer))
            except TimeoutError as error:
                raise RequestTimeout("The request took longer than this gateway allows (request_timeout_s)") from error
            finally:
                watch.cancel()

    async def _stream(self, answer: _Answer) -> None:
        async for pieces in self._pieces():
            usage = self._usage() if self._job.spec.continuous_usage else None
            # Whatever came in one step leaves in one write.
            frames = b"".join([self._job.shape.chunk(piece, usage) for piece in pieces])
            await answer.write(frames, headers=_SSE_HEADERS)
        end = self._job.shape.usage_chunk(self._usage()) if self._job.spec.include_usage else b""
        await answer.write(end + DONE, headers=_SSE_HEADERS, more=False)

    async def _whole(self, answer: _Answer) -> None:
        rows: list[list[Piece]] = [[] for _ in self._job.choices]
        async for pieces in self._pieces():
            for piece in pieces:
                rows[piece.index].append(piece)
        body = self._job.shape.body(rows, self._usage())
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await answer.write(body, headers=headers, more=False)

    async def _pieces(self) -> AsyncIterator[list[Piece]]:
        unfinished = len(self._job.choices)
        while unfinished:
            pieces: list[Piece] = []
            for news in await self._job.generation.read():
                choice = self._job.choices[news.index]
                if choice.finish_reason is not None:
                    continue  # tokens behind a stop string that were on their way
                pieces.append(choice.take(news))
                if choice.finish_reason is not None:
                    unfinished -= 1
                    if news.finish_reason is None:
                        self._job.generation.finish(news.index)
            if pieces:
                yield pieces

    def _log_end(self) -> None:
        job = self._job
        log.info(
            "request_finished",
            request_id=job.request_id,
            prompt_tokens=job.prompt_tokens,
            output_tokens=self._usage().completion_tokens,
            choices=len(job.choices),
            seconds=round(asyncio.get_running_loop().time() - job.arrived_at, 4),
        )

    def _usage(self) -> Usage:
        tokens = sum(choice.tokens for choice in self._job.choices)
        return Usage(prompt_tokens=self._job.prompt_tokens, completion_tokens=tokens)


class _Answer:
    """The ASGI side of one answer; it starts with the first write, so that a failure before that has a status."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._request_id = request_id
        self.started = False

    async def write(self, body: bytes, *, headers: list[tuple[bytes, bytes]] | None = None, more: bool = True) -> None:
        if not self.started:
            self.started = True
            all_headers = [*(headers or []), (b"x-request-id", self._request_id.encode())]
            await self._send({"type": "http.response.start", "status": 200, "headers": all_headers})
        await self._send({"type": "http.response.body", "body": body, "more_body": more})


async def _watch(receive: Receive) -> None:
    """Wait for the end of the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass
    raise _ClientGone


def _first(group: BaseException) -> RequestError:
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    assert isinstance(group, RequestError)
    return group
