"""What members of a node hand in: the rows of a batch, with the replicas that their scheduler chose, in one frame."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from janus.core.exchange_routes import Mode
from janus.core.scheduling import Assignment
from janus.errors import InstanceLost
from janus.exchange.bundle import Batch, Key
from janus.exchange.layout import check_dispatch, check_ungated
from janus.exchange.packing import Packing, Received
from janus.exchange.plan import Plan
from janus.transport.contract import InFrame
from janus.transport.frame import Flags
from janus.transport.link import Link

#: A hand-in says which replicas its rows go to, and the leader needs no more.
_NOBODY = np.zeros(0, dtype=np.int32)


def read_hand_in(
    mode: Mode, plan: Plan, link: Link, frame: InFrame, *, own: str, packing: Packing, dtype: torch.dtype
) -> tuple[Key, Batch]:
    """Return a member's rows, which stay in the frame's memory, and what rows must agree in to go on with them.

    ``own``: the instance that they are handed in to.

    Raises:
        ValueError: the frame is no dispatch for this model.
        InstanceLost: it has rows for an instance that is not used here.
    """
    header = frame.header
    layers, flags = plan.placement.num_layers, header.flags & ~Flags.HAND_IN
    if flags & (Flags.NODE | Flags.FORWARDED):
        raise ValueError("the hand-in says that it is for experts")  # whoever posts it says for which
    routed: Received | None = None
    x_TH = None
    if flags & Flags.EGATE:
        ungated = check_ungated(header, frame.payload, hidden=header.cols, dtype=dtype, num_layers=layers)
        x_TH, _ = ungated.views(frame.payload)
        top_k = 0
    else:
        layout = check_dispatch(header, hidden=header.cols, dtype=dtype, num_layers=layers)
        payload, start = frame.payload, frame.address
        slots = payload[layout.slots_at : layout.slots_at + layout.table_nbytes].view(np.int32)
        phys_TK = slots.reshape(layout.rows, layout.top_k)
        assignment = Assignment(phys_TK, _NOBODY, _NOBODY, 0, phys_address=start + layout.slots_at)
        if not packing.count(assignment, plan.everywhere):
            raise ValueError("the hand-in names no replica")
        if plan.unserved is not None and packing.count(assignment, plan.unserved):
            raise _unserved(phys_TK, plan, own)
        routed = Received(layout, payload, assignment, start, start + layout.weights_at)
        top_k = header.top_k
    batch = Batch(header.rows, routed, x_TH, link=link, request_id=header.request_id, frame=frame)
    return (mode, header.layer, plan, top_k, flags, header.cols), batch


def _unserved(phys_TK: npt.NDArray[np.int32], plan: Plan, own: str) -> InstanceLost:
    placement, unserved = plan.placement, plan.unserved
    assert unserved is not None
    real = phys_TK[phys_TK >= 0]
    found = np.unique(real[unserved.local[real] >= 0] // placement.slots_per_instance)
    names = tuple(placement.instances[index] for index in found.tolist())
    return InstanceLost(f"{own} does not use {', '.join(names)}", instances=names)
