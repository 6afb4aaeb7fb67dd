"""The bytes of dispatches and combines: which rows go to a destination, how they lie there, how answers are added up.

On a CPU with the kernels that is one call each; elsewhere torch and numpy do the same, to the bit. In a decode step the
Python around a dozen small array operations costs more than the bytes: every expert layer that is read from memory
has driven the interpreter out of the caches.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from janus.core.scheduling import Assignment
from janus.exchange.layout import DispatchLayout, address_of, matrix
from janus.model.kernels.library import DTYPES, Library, load_library
from janus.transport.contract import OutFrame

#: The rows of a batch that went to a destination, ascending; ``None`` = all of them.
Rows = npt.NDArray[np.int64] | None


@dataclass(frozen=True, slots=True, eq=False)
class Numbering:
    """How a destination numbers its slots: its instances one after the other, C slots each."""

    #: int32[physical ids]: the slot of each replica in the destination's numbering, -1 for one that is elsewhere.
    local: npt.NDArray[np.int32]
    address: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "address", self.local.ctypes.data)

    @classmethod
    def of(cls, instances: Sequence[int], *, slots: int, total: int) -> Numbering:
        """Number the slots of ``instances`` (indices in the placement, ``total`` of them, with ``slots`` each)."""
        local = np.full((total, slots), -1, dtype=np.int32)
        for position, instance in enumerate(instances):
            local[instance] = np.arange(position * slots, (position + 1) * slots, dtype=np.int32)
        return cls(local.reshape(-1))


@dataclass(slots=True, eq=False)
class Routed:
    """A batch of T rows with what the gate and the scheduler chose for it."""

    #: [T, H] in the wire dtype.
    x_TH: torch.Tensor
    assignment: Assignment
    #: float32[T, K].
    weights_TK: torch.Tensor
    #: Where the two lie, contiguous; 0 = ask torch.
    x_address: int = 0
    weights_address: int = 0


@dataclass(slots=True, eq=False)
class Received:
    """As ``Routed``, of rows that came in ``payload``. Tensors of them are made only where there are no kernels: in a
    process that was just woken, a call into torch takes ten times what it takes in a loop.
    """

    layout: DispatchLayout
    payload: npt.NDArray[np.uint8]
    assignment: Assignment
    x_address: int
    weights_address: int

    @property
    def x_TH(self) -> torch.Tensor:
        """[T, H] in the wire dtype."""
        return self.layout.views(self.payload)[0]

    @property
    def weights_TK(self) -> torch.Tensor:
        """float32[T, K]."""
        return torch.from_numpy(self.layout.views(self.payload)[2])


@dataclass(slots=True, eq=False)
class Answer:
    """Partial sums: ``count`` rows of activations from byte ``first`` of ``payload`` on, which is at ``address``."""

    payload: npt.NDArray[np.uint8]
    address: int
    count: int
    rows: Rows
    first: int = 0


class Packing(Protocol):
    """How payloads are written and read."""

    def count(self, assignment: Assignment, to: Numbering) -> int:
        """Return how many rows have a replica at the destination.

        Raises:
            ValueError: a row names a replica that the placement does not have.
        """

    def pack(
        self,
        frame: OutFrame,
        layout: DispatchLayout,
        batch: Routed | Received,
        *,
        to: Numbering,
        count: int,
        at: int = 0,
    ) -> Rows:
        """Write the ``count`` rows that go to the destination into rows ``at`` .. ``at + count`` of the payload."""

    def pack_all(self, frame: OutFrame, layout: DispatchLayout, batch: Routed) -> None:
        """Write all rows as they are; the slots are the physical ids."""

    def prime(self) -> None:
        """An answer is here: wake whoever will compute with it."""

    def combine(
        self,
        answers: Sequence[Answer],
        group_ends: Sequence[int],
        shape: torch.Size,
        residual_TH: torch.Tensor | None,
    ) -> torch.Tensor:
        """Return [T, H] in the wire dtype: the answers added up in their order, in f32, then ``residual_TH`` added.

        The answers of one group (``group_ends``: one past the last of each) are added up first and rounded to the
        wire dtype, as a node's relay would have done. The result shares no memory with the answers.
        """

    def reduce(
        self, answers: Sequence[Answer], group_ends: Sequence[int], frame: OutFrame, rows: int, hidden: int
    ) -> None:
        """As ``combine`` without a residual, into ``frame``; one of the answers may lie there, if it has all rows."""


def group_ends(groups: Sequence[int]) -> list[int]:
    """Return one past the last of each run of equal numbers."""
    last = len(groups)
    return [i + 1 for i in range(last) if i + 1 == last or groups[i + 1] != groups[i]]


def packing_for(dtype: torch.dtype, device: torch.device) -> Packing:
    """Return the fastest packing for activations of ``dtype`` on ``device``."""
    library = load_library() if device.type == "cpu" and dtype in DTYPES else None
    return TorchPacking(dtype, device) if library is None else KernelPacking(library, dtype)


class KernelPacking:
    """On the CPU kernels. For one thread: what ``combine`` tells them lies in the same memory every time."""

    def __init__(self, library: Library, dtype: torch.dtype) -> None:
        self._library = library
        self._dtype = dtype
        self._code = DTYPES[dtype]
        #: int64: the ends of groups, then the address, the rows' address and the count of each answer.
        self._told = np.empty(64, dtype=np.int64)
        self._told_at = address_of(self._told)

    def count(self, assignment: Assignment, to: Numbering) -> int:
        tokens, k = assignment.phys_ids.shape
        total = len(to.local)
        found = int(self._library.count_rows(tokens, k, total, to.address, _address(assignment)))
        if found < 0:
            raise ValueError(f"a row names a replica outside 0..{total - 1}")
        return found

    def pack(
        self,
        frame: OutFrame,
        layout: DispatchLayout,
        batch: Routed | Received,
        *,
        to: Numbering,
        count: int,
        at: int = 0,
    ) -> Rows:
        assignment, x, weights = batch.assignment, batch.x_address, batch.weights_address
        if not x:  # it is packed for several destinations
            assert isinstance(batch, Routed)
            batch.x_TH, batch.weights_TK = batch.x_TH.contiguous(), batch.weights_TK.contiguous()
            batch.x_address = x = batch.x_TH.data_ptr()
            batch.weights_address = weights = batch.weights_TK.data_ptr()
        tokens, k = assignment.phys_ids.shape
        rows = None if count == tokens else np.empty(count, dtype=np.int64)
        start = frame.address
        self._library.pack_dispatch(
            tokens,
            k,
            layout.row_nbytes,
            count,
            to.address,
            x,
            _address(assignment),
            weights,
            None if rows is None else address_of(rows),
            start + at * layout.row_nbytes,
            start + layout.slots_at + at * k * 4,
            start + layout.weights_at + at * k * 4,
        )
        return rows

    def pack_all(self, frame: OutFrame, layout: DispatchLayout, batch: Routed) -> None:
        start, x_TH, weights_TK = frame.address, batch.x_TH.contiguous(), batch.weights_TK.contiguous()
        ctypes.memmove(start, x_TH.data_ptr(), layout.x_nbytes)
        ctypes.memmove(start + layout.slots_at, _address(batch.assignment), layout.table_nbytes)
        ctypes.memmove(start + layout.weights_at, weights_TK.data_ptr(), layout.table_nbytes)

    def prime(self) -> None:
        self._library.prime()

    def combine(
        self,
        answers: Sequence[Answer],
        group_ends: Sequence[int],
        shape: torch.Size,
        residual_TH: torch.Tensor | None,
    ) -> torch.Tensor:
        total_TH = torch.empty(shape, dtype=self._dtype)
        residual = None if residual_TH is None else residual_TH.data_ptr()
        self._combine(answers, group_ends, shape, residual, total_TH.data_ptr())
        return total_TH

    def reduce(
        self, answers: Sequence[Answer], group_ends: Sequence[int], frame: OutFrame, rows: int, hidden: int
    ) -> None:
        self._combine(answers, group_ends, (rows, hidden), None, frame.address)

    def _combine(
        self,
        answers: Sequence[Answer],
        group_ends: Sequence[int],
        shape: Sequence[int],
        residual: int | None,
        out: int,
    ) -> None:
        groups = len(group_ends)
        told = [*group_ends, *[a.address for a in answers]]
        told += [0 if (rows := a.rows) is None or not rows.size else address_of(rows) for a in answers]
        told += [a.count for a in answers]
        if len(told) > len(self._told):
            self._told = np.empty(2 * len(told), dtype=np.int64)
            self._told_at = address_of(self._told)
        _numbers(len(told)).pack_into(self._told.data, 0, *told)
        ends, parts = self._told_at, 8 * len(answers)
        addresses = ends + 8 * groups
        self._library.combine(
            self._code,
            shape[0],
            shape[1],
            groups,
            ends,
            addresses,
            addresses + parts,
            addresses + 2 * parts,
            residual,
            out,
        )


class TorchPacking:
    """On any device; also what the kernels are held against."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype = dtype
        self._device = device

    def count(self, assignment: Assignment, to: Numbering) -> int:
        phys_TK, total = assignment.phys_ids, len(to.local)
        if phys_TK.size and (phys_TK.min() < -1 or phys_TK.max() >= total):
            raise ValueError(f"a row names a replica outside 0..{total - 1}")
        return int((_slots(assignment, to) >= 0).any(axis=1).sum())

    def pack(
        self,
        frame: OutFrame,
        layout: DispatchLayout,
        batch: Routed | Received,
        *,
        to: Numbering,
        count: int,
        at: int = 0,
    ) -> Rows:
        x_TH, weights_TK = batch.x_TH, batch.weights_TK.cpu().numpy()
        slots_TK = _slots(batch.assignment, to)
        x, slots, weights = layout.views(frame.payload)
        to_x, to_slots, to_weights = x[at : at + count], slots[at : at + count], weights[at : at + count]
        if count == len(slots_TK):
            to_x.copy_(x_TH)
            np.copyto(to_slots, slots_TK)
            np.copyto(to_weights, weights_TK)
            return None
        rows = np.flatnonzero((slots_TK >= 0).any(axis=1))
        to_x.copy_(x_TH[torch.from_numpy(rows).to(x_TH.device)])
        np.copyto(to_slots, slots_TK[rows])
        np.copyto(to_weights, weights_TK[rows])
        return rows

    def pack_all(self, frame: OutFrame, layout: DispatchLayout, batch: Routed) -> None:
        x, slots, weights = layout.views(frame.payload)
        x.copy_(batch.x_TH)
        np.copyto(slots, batch.assignment.phys_ids)
        np.copyto(weights, batch.weights_TK.cpu().numpy())

    def prime(self) -> None:
        return None

    def combine(
        self,
        answers: Sequence[Answer],
        group_ends: Sequence[int],
        shape: torch.Size,
        residual_TH: torch.Tensor | None,
    ) -> torch.Tensor:
        y_TH = self._sum(answers, group_ends, shape)
        return y_TH if residual_TH is None else residual_TH + y_TH

    def reduce(
        self, answers: Sequence[Answer], group_ends: Sequence[int], frame: OutFrame, rows: int, hidden: int
    ) -> None:
        y_NH = self._sum(answers, group_ends, torch.Size((rows, hidden)))
        matrix(frame.payload, rows, hidden, self._dtype).copy_(y_NH)

    def _sum(self, answers: Sequence[Answer], group_ends: Sequence[int], shape: torch.Size) -> torch.Tensor:
        total_TH = torch.zeros(shape, dtype=torch.float32, device=self._device)
        start = 0
        for end in group_ends:
            group_TH = torch.zeros_like(total_TH)
            for answer in answers[start:end]:
                y = matrix(answer.payload[answer.first :], answer.count, shape[1], self._dtype).to(self._device)
                if answer.rows is None:
                    group_TH.add_(y)
                else:
                    group_TH.index_add_(0, torch.from_numpy(answer.rows).to(self._device), y.float())
            total_TH.add_(group_TH.to(self._dtype))
            start = end
        return total_TH.to(self._dtype)


@cache
def _numbers(count: int) -> struct.Struct:
    return struct.Struct(f"{count}q")


def _address(assignment: Assignment) -> int:
    return assignment.phys_address or assignment.phys_ids.ctypes.data


def _slots(assignment: Assignment, to: Numbering) -> npt.NDArray[np.int32]:
    phys_TK = assignment.phys_ids
    return np.where(phys_TK >= 0, to.local[np.maximum(phys_TK, 0)], np.int32(-1))
