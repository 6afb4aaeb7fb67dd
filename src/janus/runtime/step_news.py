"""What an attention instance's engine tells of a step, and of a request that it does not take."""

from __future__ import annotations

from dataclasses import dataclass

from janus.core.batcher import BatcherStats, Finish
from janus.errors import RequestError
from janus.messages.control import Submit, TokenDelta


@dataclass(frozen=True, slots=True, kw_only=True)
class StepNews:
    """What one step (or one refusal) tells whoever serves the clients and whoever measures."""

    deltas: list[TokenDelta]
    #: Requests that have ended.
    finished: list[Finish]
    stats: BatcherStats
    activated: dict[str, list[int]]
    #: Of the step: seconds, rows computed, tokens sampled. Zero for news without a step.
    step_s: float = 0.0
    rows: int = 0
    sampled: int = 0
    #: Seconds that requests waited which computed for the first time.
    queue_s: tuple[float, ...] = ()
    preempted: int = 0


def refusal(message: Submit, error: RequestError) -> TokenDelta:
    """Return the end of a request that was not begun, or not begun again."""
    return TokenDelta(
        request_id=message.request_id,
        index=len(message.emitted_ids),
        token_ids=[],
        finish_reason="error",
        status=error.status,
        code=error.code,
        problem=error.message,
        retry_after_s=error.retry_after_s,
    )
