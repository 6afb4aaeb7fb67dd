"""Strangers' connections that UCX leaves half dead, and how they are put to rest.

Seen with UCX 1.21: whoever connects to a UCX listener over plain TCP and goes away before UCX's own greeting is through
(a port scan does) leaves a socket in CLOSE_WAIT that UCX neither handles nor closes, while its async thread is woken by
it for ever and burns a core. UCX offers no way to close it, and closing its descriptor behind its back would have UCX
close whatever gets that number next. So an idle socket is put in its place: the number stays taken, the noise ends.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import structlog

log = structlog.get_logger(__name__)

_TCP_CLOSE_WAIT = 8
#: A live peer's socket is in CLOSE_WAIT too, for as long as UCX takes to notice that the peer has gone: milliseconds.
CHECK_EVERY_S = 1.0


class StraySockets:
    """Finds this process's sockets at a listener's port whose other end is gone, and silences those that stay so."""

    def __init__(self, port: int) -> None:
        self._port = port
        #: (descriptor, inode) of the sockets found in CLOSE_WAIT at the last check.
        self._suspects: set[tuple[int, int]] = set()
        self._idle: socket.socket | None = None
        self._other_end: socket.socket | None = None

    def check(self) -> int:
        """Silence what was half dead at the last check and still is; returns how many that were. Any thread."""
        suspects = set(_half_dead(self._port))
        stale = suspects & self._suspects
        for descriptor, inode in stale:
            # UCX may have closed it since, in its own thread, and the number may be another socket's by now.
            if (descriptor, inode) in set(_half_dead(self._port)):
                os.dup2(self._placeholder(), descriptor)
                log.warning("stray_connection_silenced", port=self._port, problem="a stranger connected and went away")
        self._suspects = suspects - stale
        return len(stale)

    def _placeholder(self) -> int:
        if self._idle is None:
            self._idle, self._other_end = socket.socketpair()
            # UCX's thread may be about to read: from a blocking socket it would never return, and it holds UCX's lock.
            self._idle.setblocking(False)
        return self._idle.fileno()

    def close(self) -> None:
        """Close the idle socket; descriptors that it stands in for stay UCX's to close."""
        for end in (self._idle, self._other_end):
            if end is not None:
                end.close()


def _half_dead(port: int) -> Iterator[tuple[int, int]]:
    """Yield (descriptor, inode) of this process's TCP sockets at local ``port`` whose other end has closed."""
    for entry in Path("/proc/self/fd").iterdir():
        descriptor = int(entry.name)
        with contextlib.suppress(OSError):
            status = os.fstat(descriptor)
            if stat.S_ISSOCK(status.st_mode) and _in_close_wait(descriptor, port):
                yield descriptor, status.st_ino


def _in_close_wait(descriptor: int, port: int) -> bool:
    with socket.socket(fileno=os.dup(descriptor)) as copy:
        if copy.family not in (socket.AF_INET, socket.AF_INET6) or copy.type != socket.SOCK_STREAM:
            return False
        state = copy.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
        return state[0] == _TCP_CLOSE_WAIT and copy.getsockname()[1] == port
