"""One launch of ``kernels/aebs.cu`` on the CPU, over numpy arrays of the length that the kernel may touch."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tests.kernels.oracle import Case, Result
from tests.kernels.shim import Kernel


def aebs(kernel: Kernel, case: Case, block: int, *, in_place: bool = False, offset: int = 0) -> Result:
    """Launch with ``block`` threads; ``offset`` is how many elements past an aligned address every buffer begins."""
    ids = shifted(case.ids.ravel(), offset)
    phys = ids if in_place else shifted(np.full(ids.size, -77, dtype=np.int32), offset)
    load = shifted(np.full(case.instances, -77, dtype=np.int32), offset)
    active = shifted(np.full(len(case.replicas), 77, dtype=np.uint8), offset)
    stats = shifted(np.full(4, -77, dtype=np.int32), offset)
    inputs = [shifted(table.ravel(), offset) for table in (case.order, case.hosts, case.phys_of)]
    load0 = np.uint64(0) if case.load0 is None else shifted(case.load0, offset)
    read_only = [array for array in (*inputs, load0) if isinstance(array, np.ndarray)]
    for array in read_only if in_place else [ids, *read_only]:
        array.flags.writeable = False
    sizes = (np.int32(len(case.replicas)), np.int32(case.instances))
    kernel((1,), (block,), (ids, np.int32(ids.size), *inputs, load0, *sizes, phys, load, active, stats))
    return Result(phys.reshape(case.ids.shape), load, active, stats)


def shifted(values: npt.NDArray[Any], offset: int) -> npt.NDArray[Any]:
    """Return a copy that begins ``offset`` elements past a 64-byte boundary."""
    size = values.dtype.itemsize
    memory = np.empty((values.size + offset) * size + 64, dtype=np.uint8)
    start = -memory.ctypes.data % 64 + offset * size
    copy: npt.NDArray[Any] = memory[start : start + values.size * size].view(values.dtype)
    copy[:] = values
    return copy
