"""A timer for waits shorter than a millisecond, which event loops round up to one."""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct
import sys
import time
from collections.abc import Callable

_CLOCK_MONOTONIC = 1
_ABSOLUTE = 1
_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC
#: From here on the loop's own timer is precise enough.
_COARSE_S = 1e-3
#: struct itimerspec: interval, then value, each seconds and nanoseconds.
_SPEC = struct.Struct("=qqqq")


class FineTimer:
    """Calls ``callback`` once, at a time on ``time.monotonic``'s clock. Belongs to the running loop.

    On Linux short waits are a timerfd's, among the loop's descriptors. A millisecond or more is the loop's own timer's,
    as elsewhere every wait: that one is up to a millisecond late, but setting it is no system call, which in a virtual
    machine costs more than all else that it takes to gather rows.
    """

    def __init__(self, callback: Callable[[], None]) -> None:
        self._callback = callback
        self._loop = asyncio.get_running_loop()
        self._handle: asyncio.TimerHandle | None = None
        self._fd = -1
        self._armed = False
        self._due_s: float | None = None
        if sys.platform == "linux":
            self._libc = ctypes.CDLL(None, use_errno=True)
            self._fd = self._libc.timerfd_create(_CLOCK_MONOTONIC, _FLAGS)
        if self._fd >= 0:
            self._spec = ctypes.create_string_buffer(_SPEC.size)
            self._loop.add_reader(self._fd, self._expired)

    def set(self, due_s: float | None) -> None:
        """Fire at ``due_s`` instead of whenever it was to fire; ``None`` = never."""
        if due_s == self._due_s:
            return
        self._due_s = due_s
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        if due_s is not None:
            wait_s = due_s - time.monotonic()
            if self._fd < 0 or wait_s >= _COARSE_S:
                self._handle = self._loop.call_later(max(0.0, wait_s), self._look)
                due_s = None
        if self._armed or due_s is not None:
            self._arm(due_s)

    def close(self) -> None:
        """Never fire again, and give the descriptor back. Idempotent."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        if self._fd >= 0:
            if not self._loop.is_closed():
                self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
        self._armed, self._due_s = False, None

    def _arm(self, due_s: float | None) -> None:
        # All zeros would disarm it; a time that has passed fires at once.
        due_ns = 0 if due_s is None else max(1, int(due_s * 1e9))
        _SPEC.pack_into(self._spec, 0, 0, 0, *divmod(due_ns, 1_000_000_000))
        self._libc.timerfd_settime(self._fd, _ABSOLUTE, self._spec, None)
        self._armed = due_s is not None

    def _expired(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:  # it was set anew between its firing and our turn
            return
        self._armed = False
        self._fire()

    def _look(self) -> None:
        """The loop's timer has fired, which counts in whole milliseconds: perhaps a little early."""
        self._handle, due_s, self._due_s = None, self._due_s, None
        if due_s is not None and time.monotonic() < due_s:
            self.set(due_s)
        else:
            self._fire()

    def _fire(self) -> None:
        self._due_s = None
        self._callback()
