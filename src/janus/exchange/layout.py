"""The payload of dispatch and combine frames: sections that start on 64-byte boundaries, seen as tensors, not copied.

dispatch   x [rows, H] wire dtype | slots [rows, K] int32 | weights [rows, K] float32
           with EGATE: x [rows, H] wire dtype | rows of each attention instance's batch [P] int32 | left out uint64
combine    y [rows, H] wire dtype
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from janus.transport.frame import DTYPES

if TYPE_CHECKING:
    from janus.transport.frame import Header

ALIGNMENT = 64
TORCH_DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_CODES = {TORCH_DTYPES[name]: code for code, name in enumerate(DTYPES) if name}


def dtype_code(dtype: torch.dtype) -> int:
    """Return the header's code of a wire dtype; KeyError for one that does not travel."""
    return _CODES[dtype]


def dtype_of(code: int) -> torch.dtype:
    """Return the torch dtype of a header's code; KeyError for 0."""
    return TORCH_DTYPES[DTYPES[code]]


def address_of(array: npt.NDArray[Any]) -> int:
    """Return where a writable, contiguous array that is not empty lies: ``array.ctypes.data`` without its objects."""
    # It is a buffer; numpy declares that for the type checker from Python 3.12 on only.
    return ctypes.addressof(ctypes.c_char.from_buffer(array))  # type: ignore[arg-type]


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True, slots=True)
class DispatchLayout:
    """Where the sections of a dispatch payload of this shape are, in bytes."""

    rows: int
    hidden: int
    top_k: int
    dtype: torch.dtype

    #: Bytes of one row of the activations.
    row_nbytes: int = field(init=False)
    #: Bytes of the activations, and of the answer to them.
    x_nbytes: int = field(init=False)
    #: Bytes of the slots, and of the weights.
    table_nbytes: int = field(init=False)
    slots_at: int = field(init=False)
    weights_at: int = field(init=False)
    #: Bytes of the whole payload.
    nbytes: int = field(init=False)

    def __post_init__(self) -> None:
        row_nbytes = self.hidden * self.dtype.itemsize
        table_nbytes = self.rows * self.top_k * 4
        slots_at = _aligned(self.rows * row_nbytes)
        weights_at = slots_at + _aligned(table_nbytes)
        for name, value in (
            ("row_nbytes", row_nbytes),
            ("x_nbytes", self.rows * row_nbytes),
            ("table_nbytes", table_nbytes),
            ("slots_at", slots_at),
            ("weights_at", weights_at),
            ("nbytes", weights_at + table_nbytes),
        ):
            object.__setattr__(self, name, value)

    def views(
        self, payload: npt.NDArray[np.uint8]
    ) -> tuple[torch.Tensor, npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        """Return x [rows, H], slots [rows, K], weights [rows, K] as views of ``payload`` (uint8, >= nbytes)."""
        table_bytes = self.rows * self.top_k * 4
        x = matrix(payload, self.rows, self.hidden, self.dtype)
        slots = payload[self.slots_at : self.slots_at + table_bytes].view(np.int32)
        weights = payload[self.weights_at : self.weights_at + table_bytes].view(np.float32)
        return x, slots.reshape(self.rows, self.top_k), weights.reshape(self.rows, self.top_k)


@lru_cache(maxsize=1024)
def dispatch_layout(rows: int, hidden: int, top_k: int, dtype: torch.dtype) -> DispatchLayout:
    """Return the layout; the few shapes of a steady load are laid out once."""
    return DispatchLayout(rows, hidden, top_k, dtype)


@dataclass(frozen=True, slots=True)
class UngatedLayout:
    """Where the sections of a dispatch without routing are. P batches, one per attention instance that is in it.

    Each batch is gated and scheduled on its own: what a batch shares a frame with differs from node to node. All are
    scheduled without the instances that the sender leaves out: bit ``i`` is the placement's instance ``i``.
    """

    rows: int
    hidden: int
    batches: int
    dtype: torch.dtype

    @property
    def row_nbytes(self) -> int:
        """Bytes of one row of the activations."""
        return self.hidden * self.dtype.itemsize

    @property
    def x_nbytes(self) -> int:
        """Bytes of the activations, and of the answer to them."""
        return self.rows * self.row_nbytes

    @property
    def batches_at(self) -> int:
        """Where the batches' row counts start."""
        return _aligned(self.x_nbytes)

    @property
    def left_out_at(self) -> int:
        """Where the set of instances lies that get nothing."""
        return self.batches_at + 8 * -(-self.batches // 2)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole payload."""
        return self.left_out_at + 8

    def views(self, payload: npt.NDArray[np.uint8]) -> tuple[torch.Tensor, npt.NDArray[np.int32]]:
        """Return x [rows, H] and the batches' row counts [P] as views of ``payload`` (uint8, >= nbytes)."""
        x = matrix(payload, self.rows, self.hidden, self.dtype)
        return x, payload[self.batches_at : self.batches_at + 4 * self.batches].view(np.int32)

    def left_out(self, payload: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
        """Return the set of instances that get nothing, [1], as a view of ``payload``."""
        return payload[self.left_out_at : self.nbytes].view(np.uint64)


def matrix(payload: npt.NDArray[np.uint8], rows: int, cols: int, dtype: torch.dtype) -> torch.Tensor:
    """Return the first ``rows * cols`` elements of ``payload`` as a [rows, cols] tensor that shares its memory."""
    flat = torch.from_numpy(payload[: rows * cols * dtype.itemsize])
    return flat.view(dtype).view(rows, cols)


def check_dispatch(header: Header, *, hidden: int, dtype: torch.dtype, num_layers: int) -> DispatchLayout:
    """Return the layout of a received dispatch frame.

    Raises:
        ValueError: the header does not describe a dispatch for this model; the message names the field.
    """
    _check_header(header, hidden, dtype, num_layers)
    layout = dispatch_layout(header.rows, hidden, header.top_k, dtype)
    if header.payload_len != layout.nbytes:
        raise ValueError(f"dispatch payload has {header.payload_len} bytes, its header describes {layout.nbytes}")
    return layout


def check_ungated(
    header: Header, payload: npt.NDArray[np.uint8], *, hidden: int, dtype: torch.dtype, num_layers: int
) -> UngatedLayout:
    """Return the layout of a received dispatch frame without routing.

    Raises:
        ValueError: the frame is none for this model; the message names the field.
    """
    _check_header(header, hidden, dtype, num_layers)
    layout = UngatedLayout(header.rows, hidden, header.top_k, dtype)
    if header.payload_len != layout.nbytes:
        raise ValueError(f"dispatch payload has {header.payload_len} bytes, its header describes {layout.nbytes}")
    _, batches = layout.views(payload)
    if batches.min() < 1 or int(batches.sum(dtype=np.int64)) != layout.rows:
        raise ValueError(f"dispatch has {layout.rows} rows in batches of {batches.tolist()}")
    return layout


def _check_header(header: Header, hidden: int, dtype: torch.dtype, num_layers: int) -> None:
    if header.cols != hidden:
        raise ValueError(f"dispatch has {header.cols} columns, the model's hidden size is {hidden}")
    if header.dtype != dtype_code(dtype):
        raise ValueError(f"dispatch is {DTYPES[header.dtype] or 'untyped'}, this instance serves {dtype}")
    if header.layer >= num_layers:
        raise ValueError(f"dispatch is for MoE layer {header.layer}, the model has {num_layers}")
    if header.rows < 1 or header.top_k < 1:
        raise ValueError(f"dispatch has {header.rows} rows and {header.top_k} choices per row; both must be positive")
