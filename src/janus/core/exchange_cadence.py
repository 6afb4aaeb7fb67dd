"""How fast layers follow each other: what a way to exchange costs with everything that it does to a node. Pure.

What one dispatch takes at one instance says little about that: members, relays and experts share cores and links, and
rows are gathered well only when all members do it. The time from a dispatch to the one of the next layer in the same
step has it all. Pauses between steps are not in it, whether nobody asks for anything or a client waits.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

#: Steps in flight that are told apart; beyond, the one that was heard of first is forgotten.
_STREAMS = 16

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Dispatch(Generic[T]):
    layer: int
    rows: int
    now_s: float
    mark: T


class Cadence(Generic[T]):
    """The dispatches of one attention instance; ``T``: what is remembered with each."""

    def __init__(self) -> None:
        self._last: dict[Hashable, _Dispatch[T]] = {}

    def ended(self, stream: Hashable, *, layer: int, rows: int, now_s: float) -> tuple[T, float] | None:
        """Return what the dispatch before this one was marked with, and the seconds since.

        ``None`` unless it was that of the layer before in the same step, with as many rows.

        Args:
            stream: who computes the step; no two steps of one stream overlap.
            layer: MoE layer, counted over MoE layers only.
            rows: tokens of the step.
            now_s: on any clock, the same for all calls.
        """
        last = self._last.get(stream)
        if last is None or last.layer + 1 != layer or last.rows != rows or now_s <= last.now_s:
            return None
        return last.mark, now_s - last.now_s

    def begun(self, stream: Hashable, *, layer: int, rows: int, now_s: float, mark: T) -> None:
        """A dispatch goes out."""
        if stream not in self._last and len(self._last) >= _STREAMS:
            del self._last[next(iter(self._last))]
        self._last[stream] = _Dispatch(layer, rows, now_s, mark)

    def interrupted(self, stream: Hashable) -> None:
        """The dispatch of ``stream`` is sent again, or has failed: how long that takes is not the way's fault."""
        self._last.pop(stream, None)
