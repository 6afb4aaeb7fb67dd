"""Several dispatches of one layer as one input of the kernels, in memory that is kept."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch

from janus.exchange.layout import matrix
from janus.model.experts import ExpertBank
from janus.runtime.shares import Share
from janus.transport.buffers import Bytes, aligned_empty

#: Kernels read two bytes past a row of bf16.
_SLACK = 64


class _Memory:
    """Grows to what was needed most."""

    def __init__(self) -> None:
        self.array: Bytes = aligned_empty(0)[0]
        self.address = 0

    def take(self, nbytes: int) -> int:
        if len(self.array) < nbytes + _SLACK:
            self.array, self.address = aligned_empty(2 * nbytes + _SLACK)
        return self.address


class JointInput:
    """Joins shares; one computation at a time."""

    #: Where the slots of the last computation lie, and how many there are.
    slots: tuple[int, int] = (0, 0)

    def __init__(self) -> None:
        self._x, self._slots, self._weights, self._y = (_Memory() for _ in range(4))

    def forward(self, bank: ExpertBank, layer: int, shares: Sequence[Share]) -> torch.Tensor:
        """Return y [N, H] of all rows of ``shares``, in their order; valid until the next call.

        Raises:
            ReplicaMissing: a slot is empty or out of range.
            ValueError: the shares differ in K.
        """
        first = shares[0]
        if any(share.top_k != first.top_k for share in shares):
            raise ValueError(f"dispatches with K of {sorted({share.top_k for share in shares})} are for one layer")
        x_nbytes, table_nbytes = sum(s.answer_nbytes for s in shares), sum(s.table_nbytes for s in shares)
        x, slots, weights = self._x.take(x_nbytes), self._slots.take(table_nbytes), self._weights.take(table_nbytes)
        y = self._y.take(x_nbytes)
        x_at, table_at, rows = x, 0, 0
        for share in shares:
            ctypes.memmove(x_at, share.x_address, share.answer_nbytes)
            ctypes.memmove(slots + table_at, share.slots_address, share.table_nbytes)
            ctypes.memmove(weights + table_at, share.weights_address, share.table_nbytes)
            x_at += share.answer_nbytes
            table_at += share.table_nbytes
            rows += share.rows
        self.slots = (slots, table_nbytes // 4)
        bank.forward_at(layer, rows, first.top_k, x=x, slots=slots, weights=weights, out=y)
        return matrix(self._y.array, rows, first.hidden, first.dtype)
