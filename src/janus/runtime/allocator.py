"""The C allocator, told to keep the memory of activations instead of giving it back and asking for it again."""

from __future__ import annotations

import ctypes
import sys

#: mallopt's names, from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
#: The largest that glibc takes: above it each allocation is a mapping of its own.
_MMAP_BYTES = 32 << 20
_TRIM_BYTES = 512 << 20


def keep_memory() -> bool:
    """Have freed memory reused; returns whether the allocator could be told.

    Activations of a layer are megabytes, made and dropped in every layer. By default each would be mapped, cleared page
    by page as it is first touched, and unmapped; keeping it costs the process what it needed at its peak.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES)) and bool(mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES))
