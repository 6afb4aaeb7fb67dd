"""From some numbers of instances to others, one instance at a time."""

from __future__ import annotations

from collections.abc import Iterator

from janus.core.scaling.contract import Counts


def steps(present: Counts, wanted: Counts) -> Iterator[Counts]:
    """Yield the numbers on the way, ``wanted`` last: those that are added first, in turn; then those that leave."""
    at = present
    while at != wanted:
        more = (wanted.attention - at.attention, wanted.experts - at.experts)
        if max(more) > 0:
            # The role of which more are wanting; in doubt experts, which take longer to load.
            role = 1 if more[1] >= more[0] else 0
        else:
            role = 1 if more[1] <= more[0] else 0
        change = 1 if max(more) > 0 else -1
        at = at.plus(experts=change) if role else at.plus(attention=change)
        yield at
