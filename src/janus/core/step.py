"""One step of the engine: the batch that the batcher decided on, as arrays ready for the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from janus.core.request import Request, SamplingView


class Chunk(NamedTuple):
    """Consecutive tokens of one request that one step computes."""

    request_id: str
    token_ids: tuple[int, ...]
    #: Position in the sequence of the first token.
    start: int
    #: Blocks of the whole sequence, in order; block ``i`` holds positions ``i * block_size`` and following.
    block_table: tuple[int, ...]
    #: Whether the chunk reaches the end of the known tokens, so that its last logits give the next one.
    sample: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepPlan:
    """A batch of S chunks with T tokens in all, R of which are sampled. The arrays belong to the plan alone.

    Chunks of one token (decode) come first, ``num_decode`` of them, so that a kernel for each kind can take its slice.
    """

    step_id: int
    #: 1, or one more than the number of failed steps since the last good one.
    attempt: int
    #: Since when steps fail: those of a request of this plan, or all steps, whichever is longer; ``None`` if neither.
    failing_since: float | None
    chunks: tuple[Chunk, ...]
    num_decode: int
    #: int64[T], int64[T]: the tokens, and where in their sequences they are.
    token_ids: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    #: int64[T]: where the keys and values go: ``block * block_size + offset``.
    slot_mapping: npt.NDArray[np.int64]
    #: int32[S+1]: chunk ``s`` is tokens ``query_start[s] .. query_start[s + 1]``.
    query_start: npt.NDArray[np.int32]
    #: int32[S]: tokens of the sequence up to and including the chunk.
    context_len: npt.NDArray[np.int32]
    #: int32[S, maxb]: the block tables; entries past ``ceil(context_len / block_size)`` are valid ids without meaning.
    block_tables: npt.NDArray[np.int32]
    #: int64[R]: rows of T whose logits are sampled; ``sampling[i]`` belongs to ``sample_rows[i]``.
    sample_rows: npt.NDArray[np.int64]
    sampling: tuple[SamplingView, ...]
    #: (request id, seconds waited) of the requests that compute for the first time.
    started: tuple[tuple[str, float], ...]
    #: Requests that lost their blocks for this step and will be recomputed.
    preempted: tuple[str, ...]
    #: The batcher's own records, aligned with ``chunks``.
    requests: tuple[Request, ...] = field(repr=False)

    @property
    def has_prompts(self) -> bool:
        """Whether it computes more than the next token of running streams."""
        return self.num_decode < len(self.chunks)


class StepBuilder:
    """Collects the chunks of one step under its token budget, then is thrown away."""

    __slots__ = ("chunks", "left", "num_decode", "preempted", "requests", "rows", "started", "step_id")

    def __init__(self, *, step_id: int, token_budget: int) -> None:
        self.step_id = step_id
        self.left = token_budget
        self.chunks: list[Chunk] = []
        self.requests: list[Request] = []
        self.rows: list[int] = []
        self.num_decode = 0
        self.started: list[tuple[str, float]] = []
        self.preempted: list[str] = []

    def add_decode(self, request: Request) -> None:
        """Add the single token of ``request`` that is not computed yet. Comes before any ``add_prefill``."""
        self._add(request, (request.tokens[-1],), True)
        self.num_decode += 1
        self.left -= 1

    def add_prefill(self, request: Request) -> None:
        """Add as many tokens of ``request`` as the budget has left; at least one must be."""
        start, total = request.computed, len(request.tokens)
        end = min(total, start + self.left)
        self._add(request, tuple(request.tokens[start:end]), end == total)
        self.left -= end - start

    def _add(self, request: Request, token_ids: tuple[int, ...], sample: bool) -> None:
        self.chunks.append(Chunk(request.request_id, token_ids, request.computed, request.blocks, sample))
        self.requests.append(request)
        self.rows.append(request.row)
        request.step_id = request.last_step = self.step_id

    def build(
        self, *, tables: npt.NDArray[np.int32], block_size: int, attempt: int, failing_since: float | None
    ) -> StepPlan:
        """Return the plan. ``tables`` int32[max_running, max_blocks] has the block table of each row."""
        chunks = self.chunks
        lengths = np.array([len(chunk.token_ids) for chunk in chunks], dtype=np.int64)
        starts = np.array([chunk.start for chunk in chunks], dtype=np.int64)
        rows = np.array(self.rows, dtype=np.int64)
        token_ids = np.array([token for chunk in chunks for token in chunk.token_ids], dtype=np.int64)

        query_start = np.zeros(len(chunks) + 1, dtype=np.int64)
        np.cumsum(lengths, out=query_start[1:])
        positions = np.arange(len(token_ids), dtype=np.int64) + np.repeat(starts - query_start[:-1], lengths)
        block_index, offset = np.divmod(positions, block_size)
        slot_mapping = tables[np.repeat(rows, lengths), block_index].astype(np.int64) * block_size + offset
        sampled = [chunk.sample for chunk in chunks]
        max_blocks = int(block_index.max()) + 1
        return StepPlan(
            step_id=self.step_id,
            attempt=attempt,
            failing_since=_earliest(failing_since, self.requests),
            chunks=tuple(chunks),
            num_decode=self.num_decode,
            token_ids=token_ids,
            positions=positions,
            slot_mapping=slot_mapping,
            query_start=query_start.astype(np.int32),
            context_len=(starts + lengths).astype(np.int32),
            block_tables=tables[rows, :max_blocks],
            sample_rows=query_start[1:][sampled] - 1,
            sampling=tuple(r.view for r, wanted in zip(self.requests, sampled, strict=True) if wanted),
            started=tuple(self.started),
            preempted=tuple(self.preempted),
            requests=tuple(self.requests),
        )


def _earliest(failing_since: float | None, requests: Sequence[Request]) -> float | None:
    times = [request.failing_since for request in requests if request.failing_since is not None]
    if failing_since is not None:
        times.append(failing_since)
    return min(times, default=None)
