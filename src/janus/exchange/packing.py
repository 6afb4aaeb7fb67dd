"""The bytes of dispatches and combines: which rows go to an instance, how they are laid out, how answers are added up.

On a CPU with the kernels that is one call each; elsewhere torch and numpy do the same, to the bit. In a decode step the
Python around a dozen small array operations costs more than the bytes: every expert layer that is read from memory
has driven the interpreter out of the caches.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from janus.core.scheduling import Assignment
from janus.exchange.layout import DispatchLayout, matrix
from janus.model.kernels.library import DTYPES, Library, load_library
from janus.transport.contract import InFrame, OutFrame

#: The rows of a batch that went to an instance, ascending; ``None`` = all of them.
Rows = npt.NDArray[np.int64] | None


class Packing(Protocol):
    """How payloads are written and read."""

    def pack(
        self,
        frame: OutFrame,
        layout: DispatchLayout,
        x_TH: torch.Tensor,
        assignment: Assignment,
        weights_TK: torch.Tensor,
        *,
        first: int,
        slots: int,
    ) -> Rows:
        """Fill ``frame`` with the ``layout.rows`` rows for the instance with physical ids [first, first + slots)."""

    def prime(self) -> None:
        """An answer is here: wake whoever will compute with it."""

    def combine(
        self, answers: Sequence[tuple[InFrame, Rows]], shape: torch.Size, residual_TH: torch.Tensor | None
    ) -> torch.Tensor:
        """Return [T, H] in the wire dtype: the answers added up in their order, in f32, then ``residual_TH`` added.

        The result shares no memory with the answers.
        """


def packing_for(dtype: torch.dtype, device: torch.device) -> Packing:
    """Return the fastest packing for activations of ``dtype`` on ``device``."""
    library = load_library() if device.type == "cpu" and dtype in DTYPES else None
    return TorchPacking(dtype, device) if library is None else KernelPacking(library, dtype)


class KernelPacking:
    """On the CPU kernels."""

    def __init__(self, library: Library, dtype: torch.dtype) -> None:
        self._library = library
        self._dtype = dtype
        self._code = DTYPES[dtype]

    def pack(
        self,
        frame: OutFrame,
        layout: DispatchLayout,
        x_TH: torch.Tensor,
        assignment: Assignment,
        weights_TK: torch.Tensor,
        *,
        first: int,
        slots: int,
    ) -> Rows:
        x_TH, weights_TK = x_TH.contiguous(), weights_TK.contiguous()
        phys_TK = assignment.phys_ids
        tokens, k = phys_TK.shape
        rows = None if layout.rows == tokens else np.empty(layout.rows, dtype=np.int64)
        self._library.pack_dispatch(
            tokens,
            k,
            layout.row_nbytes,
            first,
            slots,
            layout.rows,
            x_TH.data_ptr(),
            assignment.phys_address or phys_TK.ctypes.data,
            weights_TK.data_ptr(),
            None if rows is None else rows.ctypes.data,
            frame.address,
        )
        return rows

    def prime(self) -> None:
        self._library.prime()

    def combine(
        self, answers: Sequence[tuple[InFrame, Rows]], shape: torch.Size, residual_TH: torch.Tensor | None
    ) -> torch.Tensor:
        total_TH = torch.empty(shape, dtype=self._dtype)
        parts = len(answers)
        self._library.combine(
            self._code,
            shape[0],
            shape[1],
            parts,
            (ctypes.c_void_p * parts)(*(frame.address for frame, _ in answers)),
            (ctypes.c_void_p * parts)(*(None if rows is None else rows.ctypes.data for _, rows in answers)),
            (ctypes.c_int64 * parts)(*(frame.header.rows for frame, _ in answers)),
            None if residual_TH is None else residual_TH.data_ptr(),
            total_TH.data_ptr(),
        )
        return total_TH


class TorchPacking:
    """On any device; also what the kernels are held against."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype = dtype
        self._device = device

    def pack(
        self,
        frame: OutFrame,
        layout: DispatchLayout,
        x_TH: torch.Tensor,
        assignment: Assignment,
        weights_TK: torch.Tensor,
        *,
        first: int,
        slots: int,
    ) -> Rows:
        phys_TK = assignment.phys_ids
        here_TK = (phys_TK >= first) & (phys_TK < first + slots)
        slots_TK = np.where(here_TK, phys_TK - np.int32(first), np.int32(-1))
        to_x, to_slots, to_weights = layout.views(frame.payload)
        if layout.rows == len(phys_TK):
            to_x.copy_(x_TH)
            np.copyto(to_slots, slots_TK)
            np.copyto(to_weights, weights_TK.cpu().numpy())
            return None
        rows = np.flatnonzero(here_TK.any(axis=1))
        to_x.copy_(x_TH[torch.from_numpy(rows).to(x_TH.device)])
        np.take(slots_TK, rows, axis=0, out=to_slots)
        np.take(weights_TK.cpu().numpy(), rows, axis=0, out=to_weights)
        return rows

    def prime(self) -> None:
        return None

    def combine(
        self, answers: Sequence[tuple[InFrame, Rows]], shape: torch.Size, residual_TH: torch.Tensor | None
    ) -> torch.Tensor:
        total_TH = torch.zeros(shape, dtype=torch.float32, device=self._device)
        for frame, rows in answers:
            y = matrix(frame.payload, frame.header.rows, frame.header.cols, self._dtype).to(self._device)
            if rows is None:
                total_TH.add_(y)
            else:
                total_TH.index_add_(0, torch.from_numpy(rows).to(self._device), y.float())
        y_TH = total_TH.to(self._dtype)
        return y_TH if residual_TH is None else residual_TH + y_TH
