"""What one expert instance computes of a dispatch: rows, its own slots, weights - wherever these lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from janus.errors import ReplicaMissing
from janus.exchange.layout import DispatchLayout, matrix
from janus.model.kernels import load_library
from janus.runtime.replica_slots import ReplicaSlots
from janus.transport.frame import Flags
from janus.transport.link import InFrame


@dataclass(slots=True, eq=False)
class Share:
    """``rows`` rows of activations in ``frame``, and what this instance does with them."""

    frame: InFrame
    rows: int
    hidden: int
    dtype: torch.dtype
    #: int32[rows, K]: this instance's slots, -1 for none.
    slots_NK: npt.NDArray[np.int32]
    #: float32[rows, K]
    weights_NK: npt.NDArray[np.float32]
    slots_address: int
    weights_address: int
    #: Distinct slots that it names.
    activated: int

    @property
    def top_k(self) -> int:
        """K."""
        return int(self.slots_NK.shape[1])

    @property
    def x_address(self) -> int:
        """Where the activations lie."""
        return self.frame.address

    @property
    def answer_nbytes(self) -> int:
        """Bytes of the partial sums."""
        return self.rows * self.hidden * self.dtype.itemsize

    def views(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """x [rows, H], slots [rows, K] and weights [rows, K], not copied."""
        x = matrix(self.frame.payload, self.rows, self.hidden, self.dtype)
        return x, torch.from_numpy(self.slots_NK), torch.from_numpy(self.weights_NK)

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
    _, slots_NK, weights_NK = layout.views(frame.payload)
    address = start + layout.slots_at
    activated = replicas.scan(header.layer, header.epoch, slots_NK, address)
    if not activated:
        raise ReplicaMissing(f"MoE layer {header.layer} epoch {header.epoch}: the dispatch names no slot")
    return Share(
        frame,
        layout.rows,
        layout.hidden,
        layout.dtype,
        slots_NK,
        weights_NK,
        address,
        start + layout.weights_at,
        activated,
    )


def node_share(
    frame: InFrame, layout: DispatchLayout, replicas: ReplicaSlots, instance: str
) -> tuple[Share, tuple[str, ...]]:
    """Return what a dispatch to the whole node asks of ``instance``, and the names of all who have a share.

    The slots in the frame are numbered through the node's instances, in the placement's order.

    Raises:
        ReplicaMissing: the epoch is not known here, or a slot is none that it may use.
    """
    header, start = frame.header, frame.address
    placement = replicas.placement(header.epoch)
    if instance not in placement.instances:
        raise ReplicaMissing(f"epoch {header.epoch} has nothing on {instance}")
    group, count = placement.group_of(instance), placement.slots_per_instance
    position = next(i for i, member in enumerate(group) if placement.instances[member] == instance)
    _, slots_NK, weights_NK = layout.views(frame.payload)
    own_NK = np.empty_like(slots_NK)
    activated = replicas.scan(
        header.layer,
        header.epoch,
        slots_NK,
        start + layout.slots_at,
        first=position * count,
        total=len(group) * count,
        own=own_NK,
    )
    share = Share(
        frame,
        layout.rows,
        layout.hidden,
        layout.dtype,
        own_NK,
        weights_NK,
        own_NK.ctypes.data,
        start + layout.weights_at,
        activated,
    )
    if not header.flags & Flags.NODE:
        return share, (instance,)
    entries = _entries(slots_NK, start + layout.slots_at, count, len(group))
    names = tuple(placement.instances[member] for member, n in zip(group, entries, strict=True) if n)
    if not names:
        raise ReplicaMissing(f"MoE layer {header.layer} epoch {header.epoch}: the dispatch names no slot")
    return share, names


def _entries(slots_NK: npt.NDArray[np.int32], address: int, per_instance: int, instances: int) -> list[int]:
    """Return how many entries of ``slots_NK`` are each instance's."""
    library = load_library()
    entries = np.zeros(instances, dtype=np.int64)
    if library is not None:
        library.count_entries(slots_NK.size, per_instance, instances, address, entries.ctypes.data)
        return [int(n) for n in entries]
    here = slots_NK[slots_NK >= 0] // per_instance
    return [int(n) for n in np.bincount(here, minlength=instances)]
