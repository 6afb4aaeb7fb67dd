"""What the HTTP half needs of the half that talks to attention instances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from janus.messages.control import Submit, TokenLogprob


@dataclass(slots=True, kw_only=True)
class News:
    """What one sequence has produced since its last news."""

    #: Which sequence of the generation.
    index: int
    token_ids: list[int]
    #: One entry per token, where log-probabilities are wanted.
    logprobs: list[TokenLogprob]
    finish_reason: Literal["stop", "length"] | None = None
    #: The stop token that ended the sequence; it is not among ``token_ids``.
    stop_token_id: int | None = None


class Generation(Protocol):
    """All sequences of one HTTP request, running."""

    async def read(self) -> list[News]:
        """Wait for news; at most one entry per sequence, tokens in order, none twice. Safe to cancel.

        Raises:
            RequestError: the request cannot be finished. Its other sequences are cancelled.
        """
        ...

    def finish(self, index: int) -> None:
        """This sequence is complete as it is (a stop string was found): stop generating it."""
        ...

    def close(self) -> None:
        """Stop whatever still runs. May be called at any time, and more than once."""
        ...


class Backend(Protocol):
    """Where sequences are generated."""

    def start(self, requests: Sequence[Submit], *, arrived_at: float) -> Generation:
        """Start all of ``requests``, or none.

        Args:
            requests: one per sequence, with request ids that are unique in the cluster.
            arrived_at: when the client's request came in, on the running loop's clock; times in metrics count from it.

        Raises:
            Overloaded, Unavailable: they cannot be taken now.
        """
        ...

    def check(self) -> None:
        """Raise the error that any request would now be refused with, before its body is even read."""
        ...

    def problems(self) -> list[str]:
        """Why requests cannot be served now; empty when they can."""
        ...

    @property
    def in_flight(self) -> int:
        """Sequences that are started and not finished."""
        ...
