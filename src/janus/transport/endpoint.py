"""How links come to be: ``listen`` and ``connect``, over any wire."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from janus.errors import DeadlineExceeded, LinkBroken, LinkClosed, LinkError, PeerRefused, ProtocolViolation
from janus.messages import Message, decode, encode
from janus.messages.control import Identity
from janus.transport import frame as framing
from janus.transport import handshake
from janus.transport.buffers import Buffer, BufferPool
from janus.transport.frame import HEADER_BYTES, Kind
from janus.transport.inproc import InprocTransport
from janus.transport.link import Link, LinkHandler, LinkOptions
from janus.transport.shm import ShmTransport
from janus.transport.tcp import TcpTransport
from janus.transport.wire import MAX_UNPROVEN_FRAME_BYTES, Transport, TransportKind, Wire

__all__ = ["Listener", "TransportKind", "admit_all", "connect", "listen"]

log = structlog.get_logger(__name__)

#: A refusal is a frame like any other: the wire stays this long for it to arrive.
_LINGER_S = 1.0

HandlerFactory = Callable[[Identity], LinkHandler]


def transport(kind: TransportKind) -> Transport:
    """Return the transport named ``kind``. UCX is loaded when it is first used, not before."""
    if kind == "tcp":
        return TcpTransport()
    if kind == "inproc":
        return InprocTransport()
    if kind == "shm":
        return ShmTransport()
    from janus.transport.ucx_transport import UcxTransport

    return UcxTransport()


def load(kind: TransportKind) -> None:
    """Load the libraries of ``kind``, where links should not wait for it later: UCX takes half a second. Any thread.

    Raises:
        ConfigError: they are not installed, or of another release.
    """
    if kind == "ucx":
        from janus.transport.ucx import import_ucxx

        import_ucxx()


def admit_all(identity: Identity) -> None:
    """Admit every peer that knows the secret."""


class _Opening:
    """One wire during its handshake. Ends in ``done(link)`` or ``done(error)``, exactly once, within the deadline."""

    def __init__(
        self,
        wire: Wire,
        machine: handshake.Connector | handshake.Listener,
        *,
        identity: Identity,
        handler_factory: HandlerFactory,
        options: LinkOptions,
        timeout_s: float,
        done: Callable[[_Opening, Link | LinkError], None],
    ) -> None:
        self.wire = wire
        self._machine = machine
        self._identity = identity
        self._handler_factory = handler_factory
        self._options = options
        self._done = done
        self._open = True
        self._loop = asyncio.get_running_loop()
        late = DeadlineExceeded(wire.address, f"no handshake within {timeout_s:g} s")
        self._timer = self._loop.call_later(timeout_s, self.fail, late)
        wire.max_frame = MAX_UNPROVEN_FRAME_BYTES
        wire.start(self)
        if isinstance(machine, handshake.Connector):
            self._send(machine.hello())

    def on_frame(self, buffer: Buffer, nbytes: int) -> None:
        if not self._open:
            return
        try:
            step = self._machine.receive(_decode(buffer, nbytes))
        except ValueError as error:
            self.fail(ProtocolViolation(self.wire.address, str(error)))
            return
        buffer.release()
        if step.send is not None:
            self._send(step.send)
        if step.refused is not None:
            refusal = PeerRefused(self.wire.address, step.refused.code, step.refused.problem)
            self.fail(refusal, linger=step.send is not None)
        elif step.peer is not None:
            self._succeed(step.peer, step.credits)

    def on_lost(self, error: LinkError) -> None:
        self.fail(error)

    def fail(self, error: LinkError, *, linger: bool = False) -> None:
        """Give the wire up because of ``error``."""
        if not self._open:
            self.wire.close()
            return
        self._open = False
        self._timer.cancel()
        if linger:
            self._loop.call_later(_LINGER_S, self.wire.close)
        else:
            self.wire.close()
        level = log.info if isinstance(error, LinkClosed) else log.warning
        level("handshake_failed", address=self.wire.address, error=type(error).__name__, problem=error.problem)
        self._done(self, error)

    def _succeed(self, peer: Identity, credits: int) -> None:
        self._open = False
        self._timer.cancel()
        link = Link(
            self.wire,
            local=self._identity,
            peer=peer,
            options=self._options,
            credits=credits,
            listening=isinstance(self._machine, handshake.Listener),
        )
        link.attach(self._handler_factory(peer))
        log.info("link_up", peer=peer.instance, role=peer.role, address=self.wire.address)
        self._done(self, link)

    def _send(self, message: Message) -> None:
        payload = encode(message)
        buffer = self.wire.pool.take(HEADER_BYTES + len(payload))
        framing.pack_fields(buffer.view, Kind.CONTROL, 0, len(payload))
        buffer.view[HEADER_BYTES : HEADER_BYTES + len(payload)] = payload
        self.wire.send(buffer, HEADER_BYTES + len(payload))


def _decode(buffer: Buffer, nbytes: int) -> Message:
    """Return the message in a handshake frame. Raises ``ValueError`` for anything else."""
    header = framing.unpack(buffer.header, max_payload=MAX_UNPROVEN_FRAME_BYTES, nbytes=nbytes)
    if header.kind != Kind.CONTROL:
        raise ValueError(f"a {header.kind.name} frame before the handshake was done")
    return decode(buffer.view[buffer.at : buffer.at + header.payload_len])


class Listener:
    """Accepts links at a port until closed. Made by ``listen``."""

    def __init__(
        self,
        *,
        identity: Identity,
        secret: bytes,
        admit: handshake.Admit,
        handler_factory: HandlerFactory,
        options: LinkOptions,
    ) -> None:
        self._identity = identity
        self._secret = secret
        self._admit = admit
        self._handler_factory = handler_factory
        self._options = options
        self._openings: set[_Opening] = set()
        self._links: set[Link] = set()
        self._closing = False
        self._port = 0
        self._stop: Callable[[], None] = lambda: None

    @property
    def port(self) -> int:
        """The port in use."""
        return self._port

    @property
    def links(self) -> tuple[Link, ...]:
        """The links that are up."""
        return tuple(link for link in self._links if not link.closed)

    async def close(self, reason: str = "the instance stops", *, timeout_s: float = 2.0) -> None:
        """Stop accepting, then close every link, delivering what was posted. Idempotent.

        On return the port is free, unless a peer keeps its side of the connection open.
        """
        self._closing = True
        self._stop()
        for opening in list(self._openings):
            opening.fail(LinkClosed(opening.wire.address, f"closed: {reason}"))
        async with asyncio.TaskGroup() as group:
            for link in self._links:
                group.create_task(self._close_link(link, reason, timeout_s), name=f"close[{link.peer.instance}]")

    @staticmethod
    async def _close_link(link: Link, reason: str, timeout_s: float) -> None:
        await link.close(reason, timeout_s=timeout_s)
        await link.wait_gone()

    def _started(self, port: int, stop: Callable[[], None]) -> None:
        self._port, self._stop = port, stop

    def _on_wire(self, wire: Wire) -> None:
        if self._closing or len(self._openings) >= self._options.max_handshakes:
            wire.close()
            log.warning("connection_refused", address=wire.address, problem="too many handshakes at a time")
            return
        machine = handshake.Listener(self._identity, self._secret, credits=self._options.credits, admit=self._admit)
        self._openings.add(
            _Opening(
                wire,
                machine,
                identity=self._identity,
                handler_factory=self._handler_factory,
                options=self._options,
                timeout_s=self._options.handshake_s,
                done=self._opened,
            )
        )

    def _opened(self, opening: _Opening, result: Link | LinkError) -> None:
        self._openings.discard(opening)
        if isinstance(result, Link):
            self._links = {link for link in self._links if not link.gone} | {result}


async def listen(
    kind: TransportKind,
    host: str,
    port: int,
    *,
    identity: Identity,
    secret: bytes,
    admit: handshake.Admit = admit_all,
    handler_factory: HandlerFactory,
    options: LinkOptions | None = None,
    pool: BufferPool | None = None,
) -> Listener:
    """Accept links at ``host:port`` (port 0: any free one). UCX always binds all interfaces; "shm" knows no hosts.

    ``pool`` is where frames come from and are received into: give ``shared_pool()`` to what shall be forwarded over
    "shm" links without a copy. ``None``: each connection has one of its own ("shm": the process's shared pool).
    ``admit`` decides about each peer that has proven the secret; ``handler_factory`` makes its handler.

    Raises:
        OSError: the port cannot be bound.
        ConfigError: ``kind`` cannot be used here: "ucx" without ucxx, "shm" without Linux's memfd.
    """
    listener = Listener(
        identity=identity,
        secret=secret,
        admit=admit,
        handler_factory=handler_factory,
        options=options or LinkOptions(),
    )
    wires = await transport(kind).listen(host, port, listener._on_wire, pool=pool)
    listener._started(wires.port, wires.close)
    return listener


async def connect(
    kind: TransportKind,
    host: str,
    port: int,
    *,
    identity: Identity,
    secret: bytes,
    handler: LinkHandler,
    options: LinkOptions | None = None,
    pool: BufferPool | None = None,
    timeout_s: float = 5.0,
) -> Link:
    """Return a link to the instance at ``host:port``. If cancelled, nothing is left behind. ``pool``: as ``listen``.

    Raises:
        LinkBroken: nobody listens there, or it went away during the handshake.
        DeadlineExceeded: no link within ``timeout_s``.
        PeerRefused: one side refused the other; ``code`` says why.
        ProtocolViolation: what listens there is no Janus instance.
        ConfigError: ``kind`` cannot be used here: "ucx" without ucxx, "shm" without Linux's memfd.
    """
    options = options or LinkOptions()
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    wire = await transport(kind).connect(host, port, timeout_s=timeout_s, pool=pool)
    opened: asyncio.Future[Link | LinkError] = loop.create_future()

    def done(_: _Opening, result: Link | LinkError) -> None:
        if not opened.done():
            opened.set_result(result)
        elif isinstance(result, Link):
            result.abort("nobody waits for it any more")

    opening = _Opening(
        wire,
        handshake.Connector(identity, secret, credits=options.credits),
        identity=identity,
        handler_factory=lambda _: handler,
        options=options,
        timeout_s=min(options.handshake_s, deadline - loop.time()),
        done=done,
    )
    try:
        result = await opened
    except asyncio.CancelledError:
        if opened.done() and not opened.cancelled() and isinstance(link := opened.result(), Link):
            link.abort("the connect was cancelled")
        else:
            opening.fail(LinkBroken(wire.address, "the connect was cancelled"))
        raise
    if isinstance(result, LinkError):
        try:
            raise result
        finally:
            # The error's traceback holds this frame: it shall not hold the error, or both would wait for the collector.
            del result, opened
    return result
