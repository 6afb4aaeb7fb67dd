"""Shared memory as a transport: how wires between processes of one host come to be.

A port is an abstract Unix socket name, so it belongs to the network namespace, is gone with its listener however that
ends, and is no TCP port: an instance may listen at the same number on both.
"""

from __future__ import annotations

import asyncio
import errno
import os
import random
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any

from janus.errors import ConfigError, DeadlineExceeded, LinkBroken
from janus.transport.accepting import SocketListener
from janus.transport.buffers import BufferPool
from janus.transport.lending import require_shared
from janus.transport.shm_wire import ShmWire
from janus.transport.wire import OnWire, Wire

_CONNECT_RETRY_S = 0.005
_PORTS = range(1024, 65536)


def _name(port: int) -> str:
    return f"\0janus-shm-{port}"


def _socket() -> socket.socket:
    if not sys.platform.startswith("linux"):
        raise ConfigError("transport", f"no abstract sockets on {sys.platform}", "use another transport than shm")
    return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)


class ShmTransport:
    """``Transport`` over shared memory; ``host`` is ignored. A port is a name in the host's network namespace."""

    async def listen(self, host: str, port: int, on_wire: OnWire, *, pool: BufferPool | None = None) -> SocketListener:
        shared = require_shared(pool)
        sock = _socket()
        try:
            port = _bind(sock, port)
            sock.listen(128)
            sock.setblocking(False)
        except BaseException:
            sock.close()
            raise

        def accepted(sock: socket.socket, _: Any) -> ShmWire:
            pid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
            return ShmWire(sock, f"shm:{port}, process {pid}", shared)

        return SocketListener(sock, port, on_wire, accepted)

    async def connect(self, host: str, port: int, *, timeout_s: float, pool: BufferPool | None = None) -> Wire:
        shared = require_shared(pool)
        address = f"shm:{port}"
        sock = _socket()
        try:
            sock.setblocking(False)
            async with asyncio.timeout(timeout_s):
                # While the backlog is full; nothing announces that it no longer is.
                while (code := sock.connect_ex(_name(port))) == errno.EAGAIN:  # noqa: ASYNC110
                    await asyncio.sleep(_CONNECT_RETRY_S)
            if code:
                raise LinkBroken(address, f"cannot connect: {os.strerror(code)}")
        except BaseException as error:
            sock.close()
            if isinstance(error, TimeoutError):
                raise DeadlineExceeded(address, f"no connection within {timeout_s:g} s") from error
            raise
        return ShmWire(sock, address, shared)

    def hold(self) -> Callable[[], None]:
        return lambda: None


def _bind(sock: socket.socket, port: int) -> int:
    """Bind to ``port``, for 0 to a free one; return it. Raises ``OSError``."""
    if port:
        sock.bind(_name(port))
        return port
    for candidate in random.sample(_PORTS, 100):
        try:
            sock.bind(_name(candidate))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
        else:
            return candidate
    raise OSError(errno.EADDRINUSE, "no free port for shared memory found")
