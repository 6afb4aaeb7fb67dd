"""Accepting wires over UCX: who may, for how long without a word, and when the port is free again."""

from __future__ import annotations

import asyncio
import errno
import functools
import itertools
from typing import Any

import structlog

from janus.errors import DeadlineExceeded, LinkError
from janus.transport.buffers import BufferPool
from janus.transport.ucx import Engine
from janus.transport.ucx_strays import CHECK_EVERY_S, StraySockets
from janus.transport.ucx_wire import UcxWire
from janus.transport.wire import OnWire

log = structlog.get_logger(__name__)

#: How long, and how many, connections may be open without having told their tag.
_OPENING_S = 3.0
_MAX_OPENING = 64


class UcxListener:
    """A UCX listener; it binds all interfaces, as ucxx has no way to name one.

    UCX keeps the port for as long as an endpoint that was accepted there lives, and ucxx goes on calling back. So this
    object refuses what comes after ``close``, and lets go of the port with the last of its wires.
    """

    def __init__(self, port: int, on_wire: OnWire, pool: BufferPool | None) -> None:
        self._engine = Engine.acquire()
        self._pool = pool
        self._on_wire = on_wire
        self._numbers = itertools.count(1)
        self._opening: dict[UcxWire, asyncio.TimerHandle] = {}
        self._alive = 0
        self._closed = False
        try:
            self._listener: Any = self._engine.api.UCXListener.create(
                self._engine.worker, port, self._on_endpoint, deliver_endpoint=True
            )
        except Exception as error:
            self._engine.release()
            raise OSError(errno.EADDRINUSE, f"UCX cannot listen on port {port}: {error}") from error
        self._port: int = self._listener.port
        self._strays = StraySockets(self._port)
        self._check_timer = self._engine.loop.call_later(CHECK_EVERY_S, self._check_strays)

    @property
    def port(self) -> int:
        return self._port

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._alive += 1
        for wire in list(self._opening):
            self._give_up(wire, None)
        self._wire_closed()

    def _wire_closed(self) -> None:
        self._alive -= 1
        if self._closed and not self._alive:
            self._check_timer.cancel()
            self._strays.close()
            self._listener = None
            self._engine.release()

    def _check_strays(self) -> None:
        self._check_timer = self._engine.loop.call_later(CHECK_EVERY_S, self._check_strays)
        self._strays.check()

    def _on_endpoint(self, endpoint: Any) -> None:
        # UCX calls from within progress(), where nothing else of UCX may be used.
        self._engine.loop.call_soon(self._open, endpoint)

    def _open(self, endpoint: Any) -> None:
        address = f"ucx-client-{next(self._numbers)}@{self._port}"
        if self._closed or len(self._opening) >= _MAX_OPENING:
            endpoint.close_blocking()
            problem = "the listener is closed" if self._closed else "too many connections that say nothing"
            log.warning("connection_refused", address=address, problem=problem)
            return
        wire = UcxWire(self._engine, endpoint, address, self._pool)
        self._alive += 1
        wire.when_closed(self._wire_closed)
        late = DeadlineExceeded(address, f"connected and said nothing for {_OPENING_S:g} s")
        self._opening[wire] = self._engine.loop.call_later(_OPENING_S, self._give_up, wire, late)
        wire.receive_prologue(functools.partial(self._opened, wire))

    def _opened(self, wire: UcxWire, error: LinkError | None) -> None:
        if error is not None:
            self._give_up(wire, error)
        elif (timer := self._opening.pop(wire, None)) is not None:
            timer.cancel()
            wire.send_prologue()
            self._on_wire(wire)

    def _give_up(self, wire: UcxWire, error: LinkError | None) -> None:
        timer = self._opening.pop(wire, None)
        if timer is None:
            return
        timer.cancel()
        wire.close()
        if error is not None:
            log.warning("connection_refused", address=wire.address, problem=error.problem)
