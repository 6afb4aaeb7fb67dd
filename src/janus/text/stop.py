"""Stop strings over a stream of text (Aho and Corasick 1975)."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence


class StopMatcher:
    """Ends a stream at the first stop string, and never lets a part of one out before it is sure.

    The stop string that is complete first wins; of several that end on the same character, the longest. The result
    depends on the text alone, not on how it was cut into pieces. Held back is the longest suffix of the text that is
    the beginning of a stop string, so at most the longest stop string minus one character.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """Raises ValueError on an empty stop string."""
        if not all(stops):
            raise ValueError("a stop string is empty")
        self._build(stops)
        self._state = 0
        self._held = ""
        #: The stop string that ended the stream, once one has.
        self.matched: str | None = None

    def _build(self, stops: Sequence[str]) -> None:
        # One node per distinct prefix. depth[node]: its length; fail[node]: the node of its longest proper suffix that
        # is a prefix too; longest[node]: the longest stop string that ends here.
        self._next: list[dict[str, int]] = [{}]
        self._depth = [0]
        self._longest: list[str | None] = [None]
        for stop in stops:
            node = 0
            for char in stop:
                child = self._next[node].get(char)
                if child is None:
                    child = self._next[node][char] = len(self._next)
                    self._next.append({})
                    self._depth.append(self._depth[node] + 1)
                    self._longest.append(None)
                node = child
            self._longest[node] = stop
        self._fail = [0] * len(self._next)
        queue = deque(self._next[0].values())
        while queue:
            node = queue.popleft()
            if self._longest[node] is None:
                self._longest[node] = self._longest[self._fail[node]]
            for char, child in self._next[node].items():
                self._fail[child] = self._step(self._fail[node], char)
                queue.append(child)

    def _step(self, node: int, char: str) -> int:
        while node and char not in self._next[node]:
            node = self._fail[node]
        return self._next[node].get(char, 0)

    def push(self, text: str) -> str:
        """Take the next piece; return what may be shown now. After a match everything is swallowed."""
        if self.matched is not None:
            return ""
        for i, char in enumerate(text):
            self._state = self._step(self._state, char)
            stop = self._longest[self._state]
            if stop is not None:
                self.matched = stop
                shown = self._held + text[: i + 1]
                self._held = ""
                return shown[: len(shown) - len(stop)]
        shown = self._held + text
        cut = len(shown) - self._depth[self._state]
        self._held = shown[cut:]
        return shown[:cut]

    def flush(self) -> str:
        """The stream has ended without a match: return what was held back."""
        held, self._held = self._held, ""
        self._state = 0
        return held
