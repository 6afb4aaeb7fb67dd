"""Fetching a replica from another expert instance, piece by piece, into the slot that it is for."""

from __future__ import annotations

import asyncio
import itertools
import time
import zlib
from concurrent.futures import Executor
from typing import Protocol

import torch

from janus.core.load_source import RateLimit
from janus.errors import DeadlineExceeded, LinkError, ProtocolViolation, ReplicaMissing
from janus.messages.control import FetchReplica, ReplicaRefused
from janus.model.experts import ExpertBank
from janus.transport.link import InFrame, Link
from janus.transport.waiting import again, fail

#: One frame. Large enough that the time of a piece is that of its bytes, small enough to come between two dispatches.
PIECE_BYTES = 1 << 20
#: For one piece; who serves it refuses what its own rate would delay for longer than half of that.
PIECE_TIMEOUT_S = 2.0


class Reach(Protocol):
    """How another expert instance is reached."""

    def knows(self, instance: str) -> bool:
        """Whether ``instance`` is there, as far as is known."""

    async def to(self, instance: str) -> Link:
        """Return a link to ``instance`` that is up.

        Raises:
            LinkError: there is none, and none comes up.
        """

    async def rest(self) -> None:
        """Close what is open for fetching alone; ``to`` opens it again."""


class ReplicaFetcher:
    """Asks for one piece at a time. For one loop."""

    def __init__(self, reach: Reach, limit: RateLimit, loader: Executor) -> None:
        """``loader``: the one thread in which the memory of free slots is written."""
        self.reach = reach
        self._limit = limit
        self._loader = loader
        self._ids = itertools.count(1)
        self._waiting: dict[int, tuple[Link, asyncio.Future[InFrame]]] = {}

    async def fetch(self, bank: ExpertBank, moe_layer: int, slot: int, expert: int, *, peer: str) -> float:
        """Fill the free ``slot`` with ``expert`` as ``peer`` holds it; returns the seconds that the peer took.

        Raises:
            LinkError: the peer cannot be reached, went away, was too late (``DeadlineExceeded``), sent something else
                (``ProtocolViolation``), or can give nothing that would be of use here.
            ReplicaMissing: it does not have this one, or not now.
        """
        loop = asyncio.get_running_loop()
        link = await self.reach.to(peer)
        room = await loop.run_in_executor(self._loader, bank.room, moe_layer, slot)
        started, waited_s = time.perf_counter(), 0.0
        copied: asyncio.Future[bool] | None = None
        for offset in range(0, bank.expert_nbytes, PIECE_BYTES):
            nbytes = min(PIECE_BYTES, bank.expert_nbytes - offset)
            wait_s = self._limit.take(nbytes, loop.time())
            if wait_s:
                waited_s += wait_s
                await asyncio.sleep(wait_s)
            frame = await self._ask(
                link,
                FetchReplica(moe_layer=moe_layer, expert=expert, offset=offset, nbytes=nbytes, layout=bank.layout),
            )
            header = frame.header
            if (header.layer, header.rows, header.payload_len) != (moe_layer, expert, nbytes):
                got = f"{header.payload_len} bytes of expert {header.rows} of MoE layer {header.layer}"
                wanted = f"{nbytes} bytes of expert {expert} of MoE layer {moe_layer}"
                frame.release()
                raise ProtocolViolation(peer, f"sent {got} for {wanted}")
            # A piece is copied while the next one is on its way.
            before, copied = copied, loop.run_in_executor(self._loader, _take, room[offset : offset + nbytes], frame)
            await _intact(before, peer)
        await _intact(copied, peer)
        return time.perf_counter() - started - waited_s

    async def _ask(self, link: Link, message: FetchReplica) -> InFrame:
        loop = asyncio.get_running_loop()
        request_id = next(self._ids)
        answer: asyncio.Future[InFrame] = loop.create_future()
        self._waiting[request_id] = (link, answer)
        try:
            link.post_message(message, request_id=request_id)
            async with asyncio.timeout(PIECE_TIMEOUT_S):
                return await answer
        except TimeoutError:
            raise DeadlineExceeded(link.peer.instance, f"no piece within {PIECE_TIMEOUT_S:g} s") from None
        finally:
            del self._waiting[request_id]

    # -- from the links --------------------------------------------------------------------------------------------

    def arrived(self, link: Link, frame: InFrame) -> None:
        """Take a piece in; one that nobody waits for is dropped."""
        found = self._waiting.get(frame.header.request_id)
        if found is None or found[0] is not link or found[1].done():
            frame.release()
        else:
            found[1].set_result(frame)

    def refused(self, link: Link, request_id: int, message: ReplicaRefused) -> None:
        """Take a refusal in."""
        found = self._waiting.get(request_id)
        if found is not None and found[0] is link and not found[1].done():
            name, problem = link.peer.instance, f"{message.code}: {message.problem}"
            if message.code in ("not_here", "busy"):
                found[1].set_exception(ReplicaMissing(f"{name}: {problem}", instances=(name,)))
            else:
                found[1].set_exception(LinkError(name, problem))

    def lost(self, link: Link, error: LinkError) -> None:
        """A link is down: what is asked over it will not come."""
        for waiting_for, answer in list(self._waiting.values()):
            if waiting_for is link:
                fail(answer, again(error))


async def _intact(copied: asyncio.Future[bool] | None, peer: str) -> None:
    if copied is not None and not await copied:
        raise ProtocolViolation(peer, "a piece of an expert came with a wrong checksum")


def _take(room: torch.Tensor, frame: InFrame) -> bool:
    """In the loader's thread: copy a piece into its place; returns whether it came as it was sent."""
    try:
        if zlib.crc32(frame.payload.data) != frame.header.cols:
            return False
        with torch.inference_mode():
            room.copy_(torch.from_numpy(frame.payload))
        return True
    finally:
        frame.release()
