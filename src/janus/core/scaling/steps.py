"""From some numbers of instances to others, one instance at a time."""

from __future__ import annotations

from collections.abc import Iterator

from janus.core.scaling.contract import Counts


def steps(present: Counts, wanted: Counts) -> Iterator[Counts]:
    """Yield the numbers on the way, ``wanted`` last: those that are added first, in turn; then those that leave."""
    at = present
    while at != wanted:
        attention, experts = wanted.attention - at.attention, wanted.experts - at.experts
        if max(attention, experts) > 0:
            # The role of which more are wanting; in doubt experts, which take longer to load.
            at = at.plus(experts=1) if experts >= attention else at.plus(attention=1)
        else:
            at = at.plus(experts=-1) if experts <= attention else at.plus(attention=-1)
        yield at
