"""How long an aggregator waits for the other members of its node. Pure: times come in, decisions go out.

Waiting pays twice: the message that is saved, and from then on the members run in step, since those who were answered
together dispatch the next layer together. It costs when a member has nothing to send, or is slower by more than a
message is worth. So a member is expected as long as it came to one of the last two bundles; and when a window of
bundles has waited for longer than it saved, waiting is given up for a number of bundles that doubles each time.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

#: A member that has missed so many bundles in a row is waited for no more until it comes by itself.
_MISSES = 2
#: Bundles after which waiting is judged: falling into step costs one long wait, which the others make up for.
_WINDOW = 16
_FIRST_PAUSE = 64
_LONGEST_PAUSE = 2048


@dataclass(slots=True)
class Linger:
    """One destination of one aggregator."""

    #: Bundles in a row that each known member missed.
    _missed: dict[str, int] = field(default_factory=dict)
    #: In this window: bundles, seconds that they waited, seconds that they saved.
    _bundles: int = 0
    _waited_s: float = 0.0
    _saved_s: float = 0.0
    #: Bundles that still go out without waiting, and how many there will be the next time.
    _pause: int = 0
    _next_pause: int = _FIRST_PAUSE

    def expected(self, present: Iterable[str]) -> frozenset[str]:
        """Return the members to wait for, when those in ``present`` have their rows in the bundle."""
        if self._pause:
            return frozenset()
        return frozenset(name for name, missed in self._missed.items() if missed < _MISSES) - frozenset(present)

    def sent(self, present: Iterable[str], *, waited_s: float, worth_s: float) -> None:
        """Note a bundle that went out.

        Args:
            present: whose rows it has.
            waited_s: between its first and its last part, or until the wait was given up.
            worth_s: what each further member in it saves.
        """
        there = frozenset(present)
        for name in there:
            self._missed[name] = 0
        for name in self._missed.keys() - there:
            self._missed[name] = min(self._missed[name] + 1, _MISSES)
        if self._pause:
            self._pause -= 1
            return
        self._bundles += 1
        self._waited_s += waited_s
        self._saved_s += worth_s * (len(there) - 1)
        if self._bundles < _WINDOW:
            return
        if self._waited_s > self._saved_s:
            self._pause, self._next_pause = self._next_pause, min(2 * self._next_pause, _LONGEST_PAUSE)
        else:
            self._next_pause = _FIRST_PAUSE
        self._bundles, self._waited_s, self._saved_s = 0, 0.0, 0.0

    def forget(self, name: str) -> None:
        """A member is gone."""
        self._missed.pop(name, None)
