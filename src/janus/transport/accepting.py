"""Accepting on a listening socket, of whatever family, driven by the loop's readiness callbacks."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from typing import Any

import structlog

from janus.transport.wire import OnWire, Wire

log = structlog.get_logger(__name__)

_OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_ACCEPT_PAUSE_S = 0.5


class SocketListener:
    """A listening, non-blocking socket. ``make_wire`` gets each accepted socket and its other end's name."""

    def __init__(
        self, sock: socket.socket, port: int, on_wire: OnWire, make_wire: Callable[[socket.socket, Any], Wire]
    ) -> None:
        self._sock = sock
        self._port = port
        self._on_wire = on_wire
        self._make_wire = make_wire
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock, self._on_readable)

    @property
    def port(self) -> int:
        return self._port

    def close(self) -> None:
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock)
            self._sock.close()

    def _resume(self) -> None:
        if self._sock.fileno() >= 0:
            self._loop.add_reader(self._sock, self._on_readable)

    def _on_readable(self) -> None:
        while True:
            try:
                sock, name = self._sock.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                log.warning("accept_failed", port=self._port, problem=str(error))
                if error.errno in _OUT_OF_RESOURCES:
                    # The connection stays in the backlog and the socket readable: to try at once is to spin.
                    self._loop.remove_reader(self._sock)
                    self._loop.call_later(_ACCEPT_PAUSE_S, self._resume)
                return
            self._on_wire(self._make_wire(sock, name))
