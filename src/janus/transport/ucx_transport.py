"""``Transport`` over UCX: listens, and connects within a deadline."""

from __future__ import annotations

import asyncio
import functools
import socket
from collections.abc import Callable

from janus.errors import DeadlineExceeded, LinkBroken, LinkError
from janus.transport.buffers import BufferPool
from janus.transport.ucx import Engine
from janus.transport.ucx_listener import UcxListener
from janus.transport.ucx_wire import UcxWire
from janus.transport.wire import OnWire, Wire


def _settle(opened: asyncio.Future[LinkError | None], result: LinkError | None) -> None:
    if not opened.done():
        opened.set_result(result)


class UcxTransport:
    """``Transport`` over UCX."""

    async def listen(self, host: str, port: int, on_wire: OnWire, *, pool: BufferPool | None = None) -> UcxListener:
        return UcxListener(port, on_wire, pool)

    async def connect(self, host: str, port: int, *, timeout_s: float, pool: BufferPool | None = None) -> Wire:
        loop = asyncio.get_running_loop()
        address = f"{host}:{port}"
        opened: asyncio.Future[LinkError | None] = loop.create_future()

        settle = functools.partial(_settle, opened)
        engine = Engine.acquire()
        wire: UcxWire | None = None
        timer = loop.call_later(timeout_s, settle, DeadlineExceeded(address, f"no connection within {timeout_s:g} s"))
        try:
            # UCX would resolve the name itself, but blocking; and it listens on IPv4 only.
            async with asyncio.timeout(timeout_s):
                infos = await loop.getaddrinfo(host, port, family=socket.AF_INET, type=socket.SOCK_STREAM)
            wire = UcxWire.open(engine, str(infos[0][4][0]), port, address, pool)
            wire.send_prologue()
            wire.receive_prologue(settle)
            if problem := await opened:
                raise problem
        except BaseException as error:
            if wire is not None:
                wire.close()
            problem = None
            if isinstance(error, TimeoutError):
                late = f"the name is not resolved within {timeout_s:g} s"
                raise DeadlineExceeded(address, late) from error
            if isinstance(error, Exception) and not isinstance(error, LinkError):
                raise LinkBroken(address, f"cannot connect: {error}") from error
            raise
        finally:
            timer.cancel()
            engine.release()
            # The error's traceback holds this frame: it shall not hold the error, or both would wait for the collector.
            del opened, settle
        return wire

    def hold(self) -> Callable[[], None]:
        return Engine.acquire().release
