"""What an expert instance computes next: everything that waits for one layer, together."""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class LayerQueues(Generic[T]):
    """Dispatches waiting per MoE layer; bounded in dispatches and in rows.

    One read of an expert's weights serves every dispatch that waits for its layer, so ``take`` hands out all of one
    layer at once: that of the dispatch that has waited longest, which keeps any layer from starving.
    """

    def __init__(self, *, max_dispatches: int, max_rows_together: int) -> None:
        """``max_dispatches``: most that may wait. ``max_rows_together``: most activation rows in one ``take``."""
        self._max = max_dispatches
        self._max_rows = max_rows_together
        self._layers: dict[int, deque[tuple[T, int]]] = {}
        self._waiting = 0

    def __len__(self) -> int:
        return self._waiting

    def put(self, layer: int, dispatch: T, rows: int) -> bool:
        """Queue ``dispatch`` of ``rows`` rows; False when the bound is reached and nothing was queued."""
        if self._waiting >= self._max:
            return False
        # A dict keeps insertion order, and a layer is removed when it is taken: the first key is the oldest layer.
        self._layers.setdefault(layer, deque()).append((dispatch, rows))
        self._waiting += 1
        return True

    def take(self) -> tuple[int, list[T]] | None:
        """Return ``(layer, dispatches)`` to compute together, oldest layer first; ``None`` when nothing waits.

        A layer with more than ``max_rows_together`` rows is handed out in several turns; one dispatch is never split.
        """
        if not self._layers:
            return None
        layer, waiting = next(iter(self._layers.items()))
        taken: list[T] = []
        total = 0
        while waiting and (not taken or total + waiting[0][1] <= self._max_rows):
            dispatch, rows = waiting.popleft()
            taken.append(dispatch)
            total += rows
        del self._layers[layer]
        if waiting:
            self._layers[layer] = waiting  # to the back: the other layers come first
        self._waiting -= len(taken)
        return layer, taken

    def clear(self) -> list[T]:
        """Forget everything and return it."""
        everything = [dispatch for waiting in self._layers.values() for dispatch, _ in waiting]
        self._layers.clear()
        self._waiting = 0
        return everything
