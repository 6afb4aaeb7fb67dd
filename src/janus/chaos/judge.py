"""What is wrong with an answer, token by token: pure, so that it can be held against answers that were spoiled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

#: So many tokens in a row must fit before a gap or a repetition is believed to explain a difference.
_SURE = 6
#: A longer gap or repetition counts as changed tokens.
_LONGEST = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How an answer differs from the undisturbed one, in tokens."""

    #: Tokens that are not there: left out on the way, or missing at the end of an answer that claims to be whole.
    lost: int = 0
    #: Tokens that came again.
    repeated: int = 0
    #: Tokens that are others.
    changed: int = 0
    #: Tokens that had not come when the stream broke off: its client was told, by an error.
    undelivered: int = 0
    #: Index of the first token that differs.
    first: int | None = None

    @property
    def right(self) -> bool:
        """Whether every token that came is the right one, in its place."""
        return not (self.lost or self.repeated or self.changed)


def judge(expected: Sequence[str], got: Sequence[str], *, whole: bool) -> Verdict:
    """Compare an answer with the undisturbed one.

    Where they part, the smallest gap or repetition after which both go on alike explains it; if there is none, the
    token is another one. ``whole``: the stream ended as it should, so that what it lacks is lost.
    """
    lost = repeated = changed = 0
    first: int | None = None
    i = j = 0  # in got, in expected
    while i < len(got):
        if j < len(expected) and got[i] == expected[j]:
            i, j = i + 1, j + 1
            continue
        first = i if first is None else first
        shift = _shift(expected, got, i, j)
        if shift > 0:
            lost, j = lost + shift, j + shift
        elif shift < 0:
            repeated, i = repeated - shift, i - shift
        elif j < len(expected):
            changed, i, j = changed + 1, i + 1, j + 1
        else:  # more tokens than there should be, and not those that came before
            changed, i = changed + 1, i + 1
    missing = len(expected) - j
    if missing and whole:
        lost, first = lost + missing, i if first is None else first
    return Verdict(
        lost=lost, repeated=repeated, changed=changed, undelivered=0 if whole else max(0, missing), first=first
    )


def _shift(expected: Sequence[str], got: Sequence[str], i: int, j: int) -> int:
    """Tokens of ``expected`` to leave out at j (> 0), or of ``got`` that came before (< 0); 0: neither fits."""
    for size in range(1, _LONGEST):
        # A repetition: got[i : i + size] is what came just before, and then it goes on.
        again = size <= j and i + size <= len(got) and list(got[i : i + size]) == list(expected[j - size : j])
        if again and _fits(expected, got, i + size, j):
            return -size
        if j + size < len(expected) and _fits(expected, got, i, j + size, least=1):
            return size
    return 0


def _fits(expected: Sequence[str], got: Sequence[str], i: int, j: int, *, least: int = 0) -> bool:
    """Whether both go on alike from there, for as long as it takes to be sure, or to the end of either."""
    length = min(_SURE, len(got) - i, len(expected) - j)
    return length >= least and list(got[i : i + length]) == list(expected[j : j + length])
