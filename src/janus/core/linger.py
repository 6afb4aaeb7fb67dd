"""Whom the leader of a bundle waits for. Pure: who is there comes in, who is missing goes out.

Waiting saves messages, and from then on the members run in step, since those who were answered together dispatch the
next layer together. Whether that pays is not judged here: it is part of what two phases take, which the choice between
the ways measures. Here it is only bounded: a member is expected as long as it came to one of the last two bundles
that it could have come to.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

#: A member that has missed so many bundles in a row is waited for no more until it comes by itself.
_MISSES = 2
_NOBODY: frozenset[str] = frozenset()


@dataclass(slots=True)
class Linger:
    """The bundles of one leader."""

    #: Bundles in a row that each known member missed.
    _missed: dict[str, int] = field(default_factory=dict)
    #: How often each member has sent a layer, ``[layer][member]``. Who has sent it once more than the others is ahead
    #: of them by less than a step, and is not waited for: it comes back to this layer in its next step only.
    _sent: dict[int, dict[str, int]] = field(default_factory=dict)

    def expected(self, present: Iterable[str], *, layer: int) -> frozenset[str]:
        """Return the members to wait for, when those in ``present`` have their rows of ``layer`` in the bundle."""
        there = frozenset(present)
        missing = [name for name, missed in self._missed.items() if missed < _MISSES and name not in there]
        if not missing:
            return _NOBODY
        sent = self._sent.get(layer, {})
        most = max([sent.get(name, 0) for name in there], default=0)
        return frozenset([name for name in missing if sent.get(name, 0) <= most])

    def sent(self, present: Iterable[str], *, layer: int) -> None:
        """Note that a bundle of ``layer`` went out with the rows of ``present``."""
        there = frozenset(present)
        for name in self.expected(there, layer=layer):
            self._missed[name] = min(self._missed[name] + 1, _MISSES)
        sent = self._sent.setdefault(layer, {})
        most = max([sent.get(name, 0) for name in there])
        for name in there:
            self._missed[name] = 0
            sent[name] = most + 1

    def forget(self, name: str) -> None:
        """A member is gone."""
        self._missed.pop(name, None)
        for sent in self._sent.values():
            sent.pop(name, None)
