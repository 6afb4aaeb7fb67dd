"""What one expert instance computes of a dispatch: rows, its own slots, weights - wherever these lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from janus.core.placement import Placement
from janus.errors import ReplicaMissing
from janus.exchange.layout import DispatchLayout, address_of, matrix
from janus.runtime.replica_epochs import LazySlots
from janus.runtime.replica_slots import ReplicaSlots
from janus.transport.frame import Flags
from janus.transport.link import InFrame


@dataclass(slots=True, eq=False)
class Share:
    """``rows`` rows of activations at the start of ``frame``, and what this instance does with them.

    Addresses, for the kernels; ``views`` makes tensors of them for whoever has none.
    """

    frame: InFrame
    rows: int
    hidden: int
    top_k: int
    dtype: torch.dtype
    #: int32[rows, K]: this instance's slots, -1 for none; ``None``: in the frame.
    own_NK: npt.NDArray[np.int32] | None
    #: float32[rows, K]; ``None``: in the frame.
    own_weights_NK: npt.NDArray[np.float32] | None
    slots_address: int
    weights_address: int
    #: Distinct slots that it names.
    activated: int

    @property
    def x_address(self) -> int:
        """Where the activations lie."""
        return self.frame.address

    @property
    def answer_nbytes(self) -> int:
        """Bytes of the partial sums."""
        return self.rows * self.hidden * self.dtype.itemsize

    @property
    def table_nbytes(self) -> int:
        """Bytes of the slots, and of the weights."""
        return 4 * self.rows * self.top_k

    def views(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return x [rows, H], slots [rows, K] and weights [rows, K], not copied."""
        payload, start = self.frame.payload, self.frame.address
        x = matrix(payload, self.rows, self.hidden, self.dtype)
        slots, weights = self.own_NK, self.own_weights_NK
        if slots is None:
            at = self.slots_address - start
            slots = payload[at : at + self.table_nbytes].view(np.int32).reshape(self.rows, self.top_k)
        if weights is None:
            at = self.weights_address - start
            weights = payload[at : at + self.table_nbytes].view(np.float32).reshape(self.rows, self.top_k)
        return x, torch.from_numpy(slots), torch.from_numpy(weights)

    @staticmethod
    def joined(shares: Sequence[Share], device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the views of several shares of one layer, one after the other."""
        x, slots, weights = (
            torch.cat(parts).to(device) for parts in zip(*(share.views() for share in shares), strict=True)
        )
        return x, slots, weights


def own_share(frame: InFrame, layout: DispatchLayout, replicas: ReplicaSlots) -> Share:
    """Return what a dispatch to this instance alone asks for.

    Raises:
        ReplicaMissing: it names no slot, or one that its epoch may not use here.
    """
    header, start = frame.header, frame.address
    slots = LazySlots(frame.payload, layout.slots_at, start + layout.slots_at, layout.rows, layout.top_k)
    activated = replicas.scan(header.layer, header.epoch, slots)
    return Share(
        frame,
        layout.rows,
        layout.hidden,
        layout.top_k,
        layout.dtype,
        None,
        None,
        slots.address,
        start + layout.weights_at,
        activated,
    )


@dataclass(frozen=True, slots=True, eq=False)
class NodeView:
    """One placement as an instance of one of its nodes sees it."""

    placement: Placement
    #: The node's instances in the placement's order, and where among them this one is.
    names: tuple[str, ...]
    position: int

    @classmethod
    def of(cls, placement: Placement, instance: str) -> NodeView:
        """Return ``instance``'s view.

        Raises:
            ReplicaMissing: the placement has nothing on it.
        """
        if instance not in placement.instances:
            raise ReplicaMissing(f"epoch {placement.epoch} has nothing on {instance}")
        names = tuple(placement.instances[member] for member in placement.group_of(instance))
        return cls(placement, names, names.index(instance))


def node_share(
    frame: InFrame, layout: DispatchLayout, replicas: ReplicaSlots, view: NodeView
) -> tuple[Share, tuple[str, ...]]:
    """Return what a dispatch to the whole node asks of this instance, and the names of all who have a share.

    The slots in the frame are numbered through the node's instances, in the placement's order.

    Raises:
        ReplicaMissing: a slot is none that the dispatch's epoch may use.
    """
    header, start = frame.header, frame.address
    slots = LazySlots(frame.payload, layout.slots_at, start + layout.slots_at, layout.rows, layout.top_k)
    own_NK = np.empty((layout.rows, layout.top_k), dtype=np.int32)
    activated, entries = replicas.take_share(
        header.layer, header.epoch, slots, own_NK, position=view.position, instances=len(view.names)
    )
    share = Share(
        frame,
        layout.rows,
        layout.hidden,
        layout.top_k,
        layout.dtype,
        own_NK,
        None,
        address_of(own_NK),
        start + layout.weights_at,
        activated,
    )
    if not header.flags & Flags.NODE:
        return share, (view.names[view.position],)
    if all(entries):
        return share, view.names
    names = tuple(name for name, n in zip(view.names, entries, strict=True) if n)
    if not names:
        raise ReplicaMissing(f"MoE layer {header.layer} epoch {header.epoch}: it names none of the slots here")
    return share, names
