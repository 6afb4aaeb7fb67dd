"""How micro-batches share the running streams: which of the free ones the next step takes."""

from __future__ import annotations

from collections.abc import Sequence

from janus.core.request import Request


def share_of(whole: int, share: int) -> int:
    """Return the part of ``whole`` that each of ``share`` micro-batches takes at most; together they take it all."""
    return -(-whole // share)


def in_turn(free: Sequence[Request], count: int) -> Sequence[Request]:
    """Return ``free``, which is in order of arrival, so that the ``count`` that go next come first; each part in order.

    Those whose last step is longest ago go next, so that everybody gets a turn. Where only some of those with the same
    last step fit, every n-th by length of context goes, so that what stays for the next micro-batch has as many keys
    and values to read.
    """
    if len(free) <= count:
        return free
    by_age = sorted(free, key=lambda request: (request.last_step, request.computed))
    last_step = by_age[count - 1].last_step
    older = [request for request in by_age if request.last_step < last_step]
    alike = [request for request in by_age if request.last_step == last_step]
    room = count - len(older)
    # The middle one of each of ``room`` equal stretches.
    spread = [alike[(2 * index + 1) * len(alike) // (2 * room)] for index in range(room)]
    first = {request.arrival for request in (*older, *spread)}
    return sorted(free, key=lambda request: request.arrival not in first)
