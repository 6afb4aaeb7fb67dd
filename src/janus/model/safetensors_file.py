"""One safetensors file, read by byte range: the header is parsed and checked, tensors are read alone.

Format (https://huggingface.co/docs/safetensors): u64 little-endian header length, a JSON object
``name -> {dtype, shape, data_offsets}`` with offsets relative to the end of the header, then the data.
"""

from __future__ import annotations

import json
import math
import os
import struct
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from janus.errors import CheckpointError

if TYPE_CHECKING:
    import torch

    from janus.model.memory import Reused

#: Headers of real checkpoints are a few MB at most; the safetensors library uses the same limit.
MAX_HEADER_BYTES = 100 << 20

#: Tensors of this size are read into memory that was used before; larger ones into new memory, on huge pages too.
_REUSED_BYTES = range(1 << 20, 32 << 20)

#: Stored dtype -> its name in torch, and bytes per element.
READABLE_DTYPES = {
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "U8": ("uint8", 1),
}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where one tensor lies. ``offset`` is absolute in the file, sizes in bytes."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def new_bytes(count: int) -> torch.Tensor:
    """Return memory to read ``count`` bytes into, uint8[count]."""
    import torch

    from janus.model.memory import huge_bytes

    if count < _REUSED_BYTES.start:
        return torch.empty(count, dtype=torch.uint8)
    return _reused().take(count) if count in _REUSED_BYTES else huge_bytes(count)


@cache
def _reused() -> Reused:
    from janus.model.memory import Reused

    return Reused()


class SafetensorsFile:
    """An open file and its parsed header. Reads are positioned, so threads may share it."""

    def __init__(self, path: Path) -> None:
        """Open ``path`` and check its header against its size.

        Raises:
            CheckpointError: missing, truncated, or no safetensors header.
        """
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise CheckpointError(str(path), "no such file", "is the download complete?") from error
        except OSError as error:
            raise CheckpointError(str(path), f"cannot be opened: {error.strerror}") from error
        self.size = os.fstat(self._fd).st_size
        self.header = self._read_header()
        self.tensors = self._parse(self.header)

    def close(self) -> None:
        """Close the file; may be called twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            self.close()

    def read(self, name: str, index: int | None = None) -> torch.Tensor:
        """Return tensor ``name``, or its ``index``-th slice along the first dimension, on the CPU in its stored dtype.

        Raises:
            CheckpointError: a stored dtype that is not served, or the file became shorter.
        """
        if index is not None:
            return self.read_rows(name, index, index + 1)[0]
        entry = self.tensors[name]
        return self._read(name, entry.offset, entry.nbytes).view(entry.shape)

    def read_rows(self, name: str, first: int, last: int) -> torch.Tensor:
        """As ``read`` of the slices from ``first`` to before ``last`` along the first dimension."""
        entry = self.tensors[name]
        each = entry.nbytes // entry.shape[0]
        rows = self._read(name, entry.offset + first * each, (last - first) * each)
        return rows.view(last - first, *entry.shape[1:])

    def read_into(self, name: str, memory: torch.Tensor) -> None:
        """Read the bytes of tensor ``name`` into ``memory``, uint8 and as many. Raises as ``read``."""
        self._read_into(memory, self.tensors[name].offset, name)

    def torch_dtype(self, name: str) -> torch.dtype:
        """Return the dtype that tensor ``name`` is stored in. Raises CheckpointError where it is not served."""
        import torch  # here, since the controller reads headers only and starts in half the time without

        entry = self.tensors[name]
        known = READABLE_DTYPES.get(entry.dtype)
        if known is None:
            raise CheckpointError(
                f"{self.path}: {name}",
                f"has dtype {entry.dtype}, which is not supported",
                f"supported: {', '.join(READABLE_DTYPES)}",
            )
        dtype: torch.dtype = getattr(torch, known[0])
        return dtype

    def _read(self, name: str, offset: int, nbytes: int) -> torch.Tensor:
        dtype, memory = self.torch_dtype(name), new_bytes(nbytes)
        self._read_into(memory, offset, name)
        return memory.view(dtype)

    def _read_into(self, buffer: torch.Tensor, offset: int, what: str) -> None:
        view = buffer.numpy().data
        while view:
            count = os.preadv(self._fd, [view], offset)
            if count == 0:
                raise CheckpointError(str(self.path), f"ends inside {what}", "the file is truncated; fetch it again")
            view, offset = view[count:], offset + count

    def _read_header(self) -> bytes:
        prefix = os.pread(self._fd, 8, 0)
        if len(prefix) < 8:
            raise CheckpointError(str(self.path), f"is {self.size} bytes long, too short for a safetensors header")
        (length,) = struct.unpack("<Q", prefix)
        if length > MAX_HEADER_BYTES or length > self.size - 8:
            raise CheckpointError(
                str(self.path), f"says its header has {length} bytes, but the file has {self.size}: not safetensors"
            )
        return os.pread(self._fd, length, 8)

    def _parse(self, header: bytes) -> dict[str, TensorEntry]:
        try:
            raw = json.loads(header)
            if not isinstance(raw, dict):
                raise ValueError("not a JSON object")
            start = 8 + len(header)
            return {name: self._entry(name, item, start) for name, item in raw.items() if name != "__metadata__"}
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise CheckpointError(str(self.path), f"has no valid safetensors header: {error}") from error

    def _entry(self, name: str, item: dict[str, Any], start: int) -> TensorEntry:
        begin, end = item["data_offsets"]
        shape = tuple(item["shape"])
        if not all(isinstance(value, int) and value >= 0 for value in (begin, end, *shape)) or end < begin:
            raise ValueError(f"{name}: bad offsets or shape")
        dtype = str(item["dtype"])
        known = READABLE_DTYPES.get(dtype)
        if known is not None and end - begin != math.prod(shape) * known[1]:
            raise ValueError(f"{name}: {end - begin} bytes do not fit shape {shape} of {dtype}")
        if start + end > self.size:
            raise CheckpointError(
                str(self.path),
                f"has {self.size} bytes, but {name} ends at byte {start + end}",
                "the file is truncated; fetch it again",
            )
        return TensorEntry(dtype=dtype, shape=shape, offset=start + begin, nbytes=end - begin)
