"""One request inside the batcher, and the actions by which the batcher answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TypeAlias

from janus.errors import RequestError
from janus.messages.control import FinishReason, SamplingParams, Submit, TokenDelta, TokenLogprob


@dataclass(frozen=True, slots=True)
class Accept:
    """The request is queued; exactly one ``Finish`` will follow."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Reject:
    """The request is refused and forgotten; nothing follows."""

    request_id: str
    error: RequestError


@dataclass(frozen=True, slots=True)
class Emit:
    """Tell the gateway. The last delta of a request has a ``finish_reason``."""

    delta: TokenDelta


@dataclass(frozen=True, slots=True)
class Finish:
    """The request has ended, and what is kept for it can go. Follows its last ``Emit``; a cancelled one has none."""

    request_id: str
    reason: FinishReason
    #: Output tokens over all attempts, a final stop token included.
    output_tokens: int


Action: TypeAlias = Accept | Reject | Emit | Finish


class SamplingView:
    """What the sampler may know of one request. One object per request, alike in every step (a key for caches).

    ``output_ids`` is live: it grows in ``Batcher.step_done``, so read it before that call and never change it.
    """

    __slots__ = ("output_ids", "params", "prompt_ids", "request_id", "seed", "stop_ids")

    def __init__(
        self,
        request_id: str,
        params: SamplingParams,
        prompt_ids: Sequence[int],
        output_ids: list[int],
        stop: frozenset[int],
    ) -> None:
        self.request_id = request_id
        self.params = params
        self.prompt_ids = prompt_ids
        self.output_ids: Sequence[int] = output_ids
        #: Token ids that end the request (end of sequence included unless ``ignore_eos``).
        self.stop_ids = stop
        #: The client's seed, else one derived from the request id: a request that is preempted, retried or resumed on
        #: another server draws the same tokens either way.
        self.seed: int = params.seed if params.seed is not None else _seed_of(request_id)

    @property
    def position(self) -> int:
        """Index in the output of the token to be sampled, counted over all attempts."""
        return len(self.output_ids)

    @property
    def suppressed_ids(self) -> frozenset[int]:
        """Tokens that must not be sampled at this position: the stop tokens until ``min_tokens`` are out."""
        return self.stop_ids if len(self.output_ids) < self.params.min_tokens else _NONE


class Request:
    """State of one accepted request; only the batcher touches it.

    ``tokens`` = prompt + output. The first ``computed`` of them have their keys and values in ``blocks``. The request
    is waiting while ``row`` is -1, else it is running and owns that row of the batcher's block table.
    """

    __slots__ = (
        "arrival",
        "blocks",
        "cancelled",
        "capacity",
        "computed",
        "failing_since",
        "last_step",
        "max_total",
        "output_ids",
        "params",
        "request_id",
        "row",
        "started",
        "step_id",
        "stop_ids",
        "submitted_at",
        "tokens",
        "view",
    )

    def __init__(
        self, submit: Submit, *, arrival: int, eos_token_ids: Sequence[int], max_model_len: int, now: float
    ) -> None:
        params = submit.params
        self.request_id = submit.request_id
        self.params = params
        self.arrival = arrival
        self.submitted_at = now
        self.started = False
        self.tokens = [*submit.prompt_ids, *submit.emitted_ids]
        self.output_ids = list(submit.emitted_ids)
        #: Length of prompt + output at which the request ends with ``length``.
        self.max_total = min(len(submit.prompt_ids) + params.max_tokens, max_model_len)
        self.stop_ids = frozenset(params.stop_token_ids).union(() if params.ignore_eos else eos_token_ids)
        self.computed = 0
        self.blocks: tuple[int, ...] = ()
        #: Tokens that fit ``blocks``.
        self.capacity = 0
        self.row = -1
        #: The step in flight that the request is part of, 0 for none.
        self.step_id = 0
        #: The last step that it was part of, 0 for none.
        self.last_step = 0
        #: When the first of its failed steps since its last good one was taken back; ``None`` while they are good.
        self.failing_since: float | None = None
        self.cancelled = False
        self.view = SamplingView(submit.request_id, params, submit.prompt_ids, self.output_ids, self.stop_ids)

    @property
    def decodes(self) -> bool:
        """Whether exactly one token is not computed yet, so that the next step goes on with the output."""
        return len(self.tokens) - self.computed == 1


def ended(
    request: Request,
    reason: FinishReason,
    *,
    token_ids: list[int],
    logprobs: list[TokenLogprob] | None = None,
    stop_token_id: int | None = None,
) -> list[Action]:
    """Return the last delta of ``request``, with the tokens that came with the end, and its ``Finish``."""
    output = len(request.output_ids)
    delta = TokenDelta(
        request_id=request.request_id,
        index=output - len(token_ids),
        token_ids=token_ids,
        logprobs=logprobs,
        finish_reason=reason,
        stop_token_id=stop_token_id,
    )
    return [Emit(delta), Finish(request.request_id, reason, output + (stop_token_id is not None))]


def failed(request: Request, error: RequestError) -> list[Action]:
    """Return the last delta of ``request``, which tells its client of ``error``, and its ``Finish``."""
    output = len(request.output_ids)
    delta = TokenDelta(
        request_id=request.request_id,
        index=output,
        token_ids=[],
        finish_reason="error",
        status=error.status,
        code=error.code,
        problem=error.message,
        retry_after_s=error.retry_after_s,
    )
    return [Emit(delta), Finish(request.request_id, "error", output)]


_NONE: frozenset[int] = frozenset()


def _seed_of(request_id: str) -> int:
    return int.from_bytes(blake2b(request_id.encode(), digest_size=8).digest(), "little", signed=True)
