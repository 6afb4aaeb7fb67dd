"""How dispatches of a placement go one way: what is worked out once, not per dispatch."""

from __future__ import annotations

from dataclasses import dataclass

from janus.core.exchange_routes import Destination
from janus.core.placement import Placement
from janus.exchange.packing import Numbering


@dataclass(slots=True, eq=False)
class Plan:
    """How dispatches of one placement go one way."""

    placement: Placement
    destinations: tuple[Destination, ...]
    #: Of each destination, and of all instances together.
    numberings: tuple[Numbering, ...]
    everywhere: Numbering
    #: Of the instances that no destination has, as they are not used; ``None`` when all are.
    unserved: Numbering | None = None
    #: The instances that are not used, as ``UngatedLayout.left_out`` has them.
    left_out: int = 0
