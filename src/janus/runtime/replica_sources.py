"""Filling a slot from whichever source is faster: the checkpoint, or another expert instance that has the expert."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

import structlog

from janus.config.options import LoadSource
from janus.core.load_source import DISK, RateLimit, SourceChoice
from janus.errors import CheckpointError, JanusError, LinkError, ReplicaMissing
from janus.model.checkpoint import Checkpoint
from janus.model.expert_weights import ExpertWeights
from janus.model.experts import ExpertBank
from janus.runtime.replica_fetch import Reach, ReplicaFetcher

log = structlog.get_logger()

P = ParamSpec("P")
T = TypeVar("T")


class ReplicaSources:
    """One replica at a time, at no more than the rate. For one loop; reading and packing is done in one thread."""

    def __init__(
        self,
        *,
        checkpoint: Checkpoint,
        own: str,
        reach: Reach | None = None,
        source: LoadSource = "auto",
        bytes_per_s: float = 0.0,
    ) -> None:
        """``own``: this instance. ``reach``: how others are reached; ``None``: only the checkpoint is read.
        ``bytes_per_s``: 0 for no limit.
        """
        self._checkpoint = checkpoint
        self._own = own
        self._choice = SourceChoice(source)
        self._limit = RateLimit(bytes_per_s)
        # One thread: what is given back is given back before the same memory is filled again.
        self._loader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="replica-loader")
        # Another one reads ahead, while nothing else wants the cores: two passes over the weights take the time of one.
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="replica-reader")
        self._may_read_ahead = not bytes_per_s
        self._ahead: tuple[tuple[int, int], Future[ExpertWeights]] | None = None
        self.fetcher = None if reach is None else ReplicaFetcher(reach, self._limit, self._loader)
        self.bytes_from_peers = 0

    @property
    def bytes_from_disk(self) -> int:
        """Bytes read from the checkpoint so far."""
        return self._checkpoint.bytes_read

    @property
    def speeds(self) -> dict[str, float]:
        """Bytes of replicas, as they are held here, per second of each source, by instance; "" is the checkpoint."""
        return self._choice.speeds

    def close(self) -> None:
        """Release the threads."""
        for threads in (self._loader, self._reader):
            threads.shutdown(wait=False, cancel_futures=True)

    async def fill(
        self,
        bank: ExpertBank,
        moe_layer: int,
        slot: int,
        expert: int,
        *,
        holders: Iterable[str] = (),
        then: Callable[[], tuple[int, int] | None] = lambda: None,
    ) -> None:
        """Fill the free ``slot`` of ``bank`` with ``expert``; the caller then has it held.

        Args:
            bank: where to.
            moe_layer: which MoE layer.
            slot: which slot.
            expert: which expert.
            holders: instances that may have the expert; this one is left out.
            then: asked for MoE layer and expert of the next fill, to be read while this one is packed.

        Raises:
            CheckpointError: no source has it, the checkpoint included.
        """
        fetcher, now = self.fetcher, asyncio.get_running_loop().time
        peers = [] if fetcher is None else [name for name in holders if name != self._own and fetcher.reach.knows(name)]
        problem: JanusError | None = None
        for source in self._choice.order(peers, now()):
            try:
                if source == DISK:
                    await self._read(bank, moe_layer, slot, expert, then)
                else:
                    assert fetcher is not None  # there are peers
                    seconds = await fetcher.fetch(bank, moe_layer, slot, expert, peer=source)
                    self._choice.measured(source, bank.expert_nbytes, seconds)
                    self.bytes_from_peers += bank.expert_nbytes
            except (CheckpointError, LinkError, ReplicaMissing) as error:
                if not isinstance(error, ReplicaMissing):  # which says nothing of the next one
                    self._choice.failed(source, now())
                log.warning("replica_source_failed", source=source or "checkpoint", problem=str(error))
                if problem is None or isinstance(error, CheckpointError):
                    problem = error
            else:
                return
        assert problem is not None
        raise problem

    async def _read(
        self, bank: ExpertBank, moe_layer: int, slot: int, expert: int, then: Callable[[], tuple[int, int] | None]
    ) -> None:
        loop = asyncio.get_running_loop()
        # The limit is for what is read, which for quantised weights is less than what is held.
        nbytes = self._checkpoint.expert_nbytes(bank.config.moe_layers[moe_layer], expert)
        wait_s = self._limit.take(nbytes, loop.time())
        if wait_s:
            await asyncio.sleep(wait_s)
        started = time.perf_counter()
        ahead, self._ahead = self._ahead, None
        if ahead is None or ahead[0] != (moe_layer, expert):
            await loop.run_in_executor(self._loader, bank.read, self._checkpoint, moe_layer, slot, expert)
            self._read_ahead(bank, then)
        else:
            weights = await asyncio.wrap_future(ahead[1])
            self._read_ahead(bank, then)
            await loop.run_in_executor(self._loader, bank.fill, moe_layer, slot, weights)
        self._choice.measured(DISK, bank.expert_nbytes, time.perf_counter() - started)

    def _read_ahead(self, bank: ExpertBank, then: Callable[[], tuple[int, int] | None]) -> None:
        if self._may_read_ahead and (following := then()) is not None:
            self._ahead = following, self._reader.submit(bank.fetch, self._checkpoint, *following)

    def give_back(self, bank: ExpertBank, places: list[tuple[int, int]]) -> None:
        """Give the memory of free (layer, slot) pairs back, in the loader's thread: it takes a while."""
        if places:
            self._loader.submit(_discard, bank, places)

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run what would keep the loop for too long in the loader's thread."""
        return await asyncio.get_running_loop().run_in_executor(self._loader, lambda: function(*args, **kwargs))

    async def rest(self) -> None:
        """Say that a load is over: links that only served loading may go; the next load opens them again."""
        if self._ahead is not None:
            self._ahead[1].cancel()
            self._ahead = None
        if self.fetcher is not None:
            await self.fetcher.reach.rest()


def _discard(bank: ExpertBank, places: list[tuple[int, int]]) -> None:
    for layer, slot in places:
        bank.discard(layer, slot)
