"""The running sequences of one HTTP request, as the pool feeds them and the response reads them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from janus.core.sequence import Sequence
from janus.errors import RequestError
from janus.messages.control import TokenLogprob
from janus.transport.link import Link
from janus_gateway.backend import News
from janus_gateway.traffic import Stretch

if TYPE_CHECKING:
    from janus_gateway.attention_pool import AttentionPool


@dataclass(slots=True, kw_only=True, eq=False)
class Track:
    """Where a sequence runs now."""

    sequence: Sequence
    generation: PoolGeneration
    #: Number of the sequence in its generation.
    index: int
    arrived_at: float
    last_token_at: float | None = None
    #: Measures the pace of its tokens, from the first one on.
    stretch: Stretch | None = None
    #: None while no instance has it.
    link: Link | None = None
    #: The instance that has it, or had it last.
    instance: str = ""


class PoolGeneration:
    """``Generation`` over an ``AttentionPool``. Holds at most the tokens that the request may produce."""

    def __init__(self, pool: AttentionPool) -> None:
        self._pool = pool
        self._news: dict[int, News] = {}
        self._error: RequestError | None = None
        self._something = asyncio.Event()
        #: Sequences that still run.
        self.live: set[Track] = set()

    async def read(self) -> list[News]:
        """Wait for news; see ``Generation.read``."""
        await self._something.wait()
        self._something.clear()
        if self._error is not None and not self._news:
            raise self._error
        if self._error is not None:
            self._something.set()  # first what came before the error, then the error
        news, self._news = list(self._news.values()), {}
        return news

    def finish(self, index: int) -> None:
        """End one sequence early."""
        for track in self.live:
            if track.index == index:
                self._pool.finish(track)
                return

    def close(self) -> None:
        """Cancel what still runs."""
        for track in list(self.live):
            self._pool.cancel(track)

    # -- the pool's side -----------------------------------------------------------------------------------------

    def add(
        self,
        index: int,
        token_ids: list[int],
        logprobs: list[TokenLogprob],
        finish_reason: Literal["stop", "length"] | None = None,
        stop_token_id: int | None = None,
    ) -> None:
        """Add to the news of one sequence."""
        if not token_ids and finish_reason is None:
            return
        news = self._news.get(index)
        if news is None:
            news = self._news[index] = News(index=index, token_ids=[], logprobs=[])
        news.token_ids += token_ids
        news.logprobs += logprobs
        news.finish_reason, news.stop_token_id = finish_reason, stop_token_id
        self._something.set()

    def fail(self, error: RequestError) -> None:
        """End the generation with ``error``, after the news that are here."""
        self._error = self._error or error
        self.close()
        self._something.set()
