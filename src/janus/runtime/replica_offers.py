"""Serving replicas to other expert instances, beside the dispatches and never before them."""

from __future__ import annotations

import asyncio
import zlib
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Literal

import structlog
import torch

from janus.core.load_source import RateLimit
from janus.errors import LinkError
from janus.messages.control import FetchReplica, ReplicaRefused
from janus.model.experts import ExpertBank
from janus.runtime.replica_fetch import PIECE_BYTES, PIECE_TIMEOUT_S
from janus.transport.frame import Kind
from janus.transport.link import Link, OutFrame

log = structlog.get_logger()

#: Pieces that may be asked for and not be on their way; each instance that loads asks for one.
_MAX_ASKED = 64


@dataclass(frozen=True, slots=True, eq=False)
class _Asked:
    link: Link
    request_id: int
    message: FetchReplica


class ReplicaOffers:
    """One piece at a time, at no more than the rate: a thread copies it, and the loop only posts it. For one loop."""

    def __init__(
        self, *, bank: Callable[[], ExpertBank | None], generation: Callable[[], int], limit: RateLimit
    ) -> None:
        """``generation``: another number once any replica of ``bank`` was taken away."""
        self._bank = bank
        self._generation = generation
        self._limit = limit
        self._asked: deque[_Asked] = deque()
        self._busy = False
        self._closed = False
        self._copier = ThreadPoolExecutor(max_workers=1, thread_name_prefix="replica-offers")
        #: Bytes sent so far.
        self.bytes_sent = 0

    def close(self) -> None:
        """Serve no more."""
        self._closed = True
        self._asked.clear()
        self._copier.shutdown(wait=False, cancel_futures=True)

    def ask(self, link: Link, request_id: int, message: FetchReplica) -> None:
        """Take a request in; it is answered soon, or refused now."""
        bank = self._bank()
        if link.peer.role != "expert":
            self._refuse(link, request_id, "bad_request", f"replicas are for expert instances, not {link.peer.role}")
        elif bank is None or not 0 <= message.moe_layer < len(bank.slot_expert):
            self._refuse(link, request_id, "not_here", f"nothing of MoE layer {message.moe_layer} is here")
        elif message.layout != bank.layout:
            self._refuse(link, request_id, "layout", f"weights lie here as {bank.layout}, not as {message.layout}")
        elif not (0 < message.nbytes <= PIECE_BYTES and 0 <= message.offset <= bank.expert_nbytes - message.nbytes):
            asked = f"bytes {message.offset} to {message.offset + message.nbytes}"
            problem = f"{asked} of an expert of {bank.expert_nbytes}, in pieces of at most {PIECE_BYTES}"
            self._refuse(link, request_id, "bad_request", problem)
        elif len(self._asked) >= _MAX_ASKED:
            self._refuse(link, request_id, "busy", f"{_MAX_ASKED} pieces are asked for already")
        else:
            self._asked.append(_Asked(link, request_id, message))
            self._next()

    def _next(self) -> None:
        while self._asked and not self._busy and not self._closed:
            asked = self._asked.popleft()
            link, request_id, message = asked.link, asked.request_id, asked.message
            bank = self._bank()
            weights = None if bank is None else bank.weights(message.moe_layer, message.expert)
            if link.closed:
                continue
            if weights is None:
                problem = f"expert {message.expert} of MoE layer {message.moe_layer} is not held"
                self._refuse(link, request_id, "not_here", problem)
                continue
            loop = asyncio.get_running_loop()
            wait_s = self._limit.take(message.nbytes, loop.time())
            if wait_s > PIECE_TIMEOUT_S / 2:
                self._limit.give(message.nbytes)
                self._refuse(link, request_id, "busy", f"the load rate allows it in {wait_s:.1f} s")
                continue
            self._busy = True
            piece = weights[message.offset : message.offset + message.nbytes]
            start = partial(self._copy, loop, asked, piece)
            if wait_s:
                loop.call_later(wait_s, start)
            else:
                start()

    def _copy(self, loop: asyncio.AbstractEventLoop, asked: _Asked, piece: torch.Tensor) -> None:
        if self._closed:
            return
        try:
            frame = asked.link.allocate(asked.message.nbytes)
        except MemoryError as error:
            self._busy = False
            self._refuse(asked.link, asked.request_id, "busy", f"no memory for a piece: {error}")
            self._next()
            return
        post = partial(self._post, asked, frame, self._generation())

        def finished(checksum: Future[int]) -> None:
            if not loop.is_closed() and not checksum.cancelled():
                loop.call_soon_threadsafe(post, checksum)

        self._copier.submit(_put, frame, piece).add_done_callback(finished)

    def _post(self, asked: _Asked, frame: OutFrame, generation: int, checksum: Future[int]) -> None:
        self._busy = False
        link, request_id, message = asked.link, asked.request_id, asked.message
        if generation != self._generation():
            # Its memory may have been given back while it was copied: once more, if it is still held.
            self._limit.give(message.nbytes)
            self._asked.appendleft(asked)
        elif (error := checksum.exception()) is not None:
            log.error("replica_not_sent", peer=link.peer.instance, problem=str(error))
            self._refuse(link, request_id, "not_here", f"it cannot be read: {error}")
        else:
            try:
                link.post(
                    frame,
                    kind=Kind.REPLICA,
                    request_id=request_id,
                    layer=message.moe_layer,
                    rows=message.expert,
                    cols=checksum.result(),
                )
                self.bytes_sent += message.nbytes
            except LinkError as failed:
                log.info("replica_not_sent", peer=link.peer.instance, problem=failed.problem)
        self._next()

    @staticmethod
    def _refuse(
        link: Link, request_id: int, code: Literal["not_here", "layout", "busy", "bad_request"], problem: str
    ) -> None:
        try:
            link.reply(request_id, ReplicaRefused(code=code, problem=problem))
        except LinkError as error:
            log.info("replica_not_refused", peer=link.peer.instance, problem=error.problem)


def _put(frame: OutFrame, piece: torch.Tensor) -> int:
    """In the copier's thread: fill the frame; returns its CRC-32."""
    torch.from_numpy(frame.payload).copy_(piece)
    return zlib.crc32(frame.payload.data)
