"""Wires between processes of one host: payloads stay where they are in shared memory, messages say where that is.

The messages go through a Unix socket of type SEQPACKET under an abstract name made of the port: it keeps their order,
wakes the other end's loop, orders memory, tells at once when the other end dies, and leaves nothing on disk. Each is
one of

* a frame as it is (header first), small enough that copying is cheaper than referring; before the other end has proven
  the cluster secret, all are;
* ``JSEG``: the sender's memory, as a descriptor, and where the wire's table lies in it. Sent before the first loan,
  and never to a stranger;
* ``JREF``: a loan (see ``lending``) with the frame's header behind it: slot, generation, where the payload lies.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import errno
import os
import socket
import struct
from collections import deque

from janus.errors import LinkBroken, LinkError, ProtocolViolation
from janus.transport.borrowing import Lender
from janus.transport.buffers import Buffer, BufferPool
from janus.transport.frame import HEADER_BYTES
from janus.transport.lending import QUARANTINE_S, SLOTS, Loans, SharedPool
from janus.transport.segment import PeerSegment
from janus.transport.wire import MAX_UNPROVEN_FRAME_BYTES, WireHandler

#: magic, slot, generation, 0, offset, bytes of payload; for a segment: magic, version, slots, 0, table's offset, 0
_MESSAGE = struct.Struct("<4sIIIQQ")
_LOAN, _SEGMENT = b"JREF", b"JSEG"
_VERSION = 1
_LOAN_BYTES = _MESSAGE.size + HEADER_BYTES
#: Frames up to this size travel within the message; `benchmarks/transport/pingpong.py` shows where the lines cross.
INLINE_BYTES = (8 << 10) + HEADER_BYTES
_SOCKET_BYTES = 256 << 10
_READS_PER_EVENT = 16
_SEEN_TO = -1
_ONE_FD = socket.CMSG_SPACE(4)

Message = bytes | bytearray | memoryview


class ShmWire:
    """A connected, non-blocking Unix socket, with memory on both sides."""

    def __init__(self, sock: socket.socket, address: str, pool: SharedPool) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BYTES)
        self.address = address
        self.max_frame = MAX_UNPROVEN_FRAME_BYTES
        self.proven = False
        self.pool: BufferPool = pool
        #: Frames whose payload had to be copied into shared memory to be sent.
        self.copied = 0
        self._shared = pool
        self._where = pool.segment.where
        self._loop = asyncio.get_running_loop()
        self._sock: socket.socket | None = sock
        self._handler: WireHandler | None = None
        self._loans: Loans | None = None
        self._lender: Lender | None = None
        self._message = bytearray(_LOAN_BYTES)
        #: What the next message is received into.
        self._spare: Buffer | None = None
        #: Messages that the kernel did not take yet, with the buffer to release or the descriptor to send.
        self._outbox: deque[tuple[Message, Buffer | int | None]] = deque()

    def start(self, handler: WireHandler) -> None:
        first = self._handler is None
        self._handler = handler
        if first and self._sock is not None:
            self._loop.add_reader(self._sock, self._on_readable)

    def close(self) -> None:
        self._handler = None
        sock, self._sock = self._sock, None
        if sock is None:
            return
        self._loop.remove_reader(sock)
        self._loop.remove_writer(sock)
        sock.close()
        for _, extra in self._outbox:
            if isinstance(extra, Buffer):
                extra.release()
        self._outbox.clear()
        if self._spare is not None:
            self._spare.release()
            self._spare = None
        if self._lender is not None:
            self._lender.open = False
            self._lender = None
        loans, self._loans = self._loans, None
        if loans is not None:
            loans.collect()
            self._shared.quarantine(loans)
            if len(loans):
                self._loop.call_later(QUARANTINE_S + 1, self._shared.settle)

    # -- sending --------------------------------------------------------------------------------------------------

    def reference(self, buffer: Buffer, first: int, nbytes: int) -> Buffer | None:
        if nbytes + HEADER_BYTES <= INLINE_BYTES or first % 64 or self._where(buffer.address) is None:
            return None
        return buffer.share(first)

    def send(self, buffer: Buffer, nbytes: int) -> None:
        if self._sock is None:
            buffer.release()
        elif nbytes > INLINE_BYTES and self.proven:
            self._lend(buffer, nbytes)
        else:
            self._transmit(buffer.view[:nbytes], buffer)
            if self._loans is not None:
                self._loans.collect()

    def _lend(self, buffer: Buffer, nbytes: int) -> None:
        offset = self._where(buffer.address + buffer.at)
        if offset is None:
            buffer = self._copy_in(buffer, nbytes)
            offset = self._where(buffer.address + buffer.at)
        loans = self._export() if self._loans is None else self._loans
        loan = None if offset is None or loans is None else loans.lend(buffer)
        if loan is None:
            buffer.release()
            self._fail(self._why_no_loan(nbytes))
            return
        message = self._message
        _MESSAGE.pack_into(message, 0, _LOAN, loan[0], loan[1], 0, offset, nbytes - HEADER_BYTES)
        message[_MESSAGE.size :] = buffer.header[:HEADER_BYTES]
        self._transmit(message, None)

    def _copy_in(self, private: Buffer, nbytes: int) -> Buffer:
        """Return ``private``'s frame in shared memory, or if there is none left in private memory again."""
        buffer = self._shared.take(nbytes)
        payload = nbytes - HEADER_BYTES
        buffer.header[:HEADER_BYTES] = private.header[:HEADER_BYTES]
        buffer.array[buffer.at : buffer.at + payload] = private.array[private.at : private.at + payload]
        private.release()
        self.copied += 1
        return buffer

    def _why_no_loan(self, nbytes: int) -> str:
        if self._loans is not None and len(self._loans) >= SLOTS:
            return f"the other end has not released {len(self._loans)} frames"
        size, used = self._shared.segment.nbytes, self._shared.used_bytes
        return f"no shared memory left for a frame of {nbytes} bytes: {used} of {size} are in use"

    def _export(self) -> Loans | None:
        """Share our memory with the other end, and return the book of what it borrows; ``None`` if there is no room."""
        try:
            self._loans = self._shared.loans()
        except MemoryError:
            return None
        message = _MESSAGE.pack(_SEGMENT, _VERSION, SLOTS, 0, self._loans.table_offset, 0)
        self._transmit(message, self._shared.segment.export())
        return self._loans

    def _transmit(self, message: Message, extra: Buffer | int | None) -> None:
        """Send a message, now or when the kernel takes it, with a descriptor; then release the buffer it lies in."""
        sock = self._sock
        if not self._outbox and sock is not None:
            try:
                if type(extra) is int:
                    _send_with(sock, message, extra)
                else:
                    sock.send(message)
            except OSError as error:
                gone = self._gave_up(error)
            else:
                gone = True
            if gone:
                if isinstance(extra, Buffer):
                    extra.release()
                return
            self._loop.add_writer(sock, self._on_writable)
        self._outbox.append((bytes(message) if type(message) is bytearray else message, extra))

    def _gave_up(self, error: OSError) -> bool:
        """Return whether there is no use in trying again to send what met ``error``."""
        if isinstance(error, BlockingIOError | InterruptedError):
            return False
        # If the other end is gone the reader will say so, after what had arrived.
        if not isinstance(error, BrokenPipeError | ConnectionResetError):
            self._fail(f"cannot send: {error}")
        return True

    def _fail(self, problem: str) -> None:
        """Give up sending. Nothing that comes later may go out: the other end would take it for a lie about order."""
        if self._sock is not None:
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_WR)
        # Not reported from here: a handler that is in the middle of a send must not be called back.
        self._loop.call_soon(self._lose, LinkBroken(self.address, problem))

    def _on_writable(self) -> None:
        waiting, self._outbox = self._outbox, deque()
        while waiting and not self._outbox:
            self._transmit(*waiting.popleft())
        self._outbox.extend(waiting)
        if not self._outbox and self._sock is not None:
            self._loop.remove_writer(self._sock)

    # -- receiving ------------------------------------------------------------------------------------------------

    def _on_readable(self) -> None:
        for _ in range(_READS_PER_EVENT):
            sock, spare = self._sock, self._spare
            if sock is None:
                return
            if spare is None:
                # Larger by one than what is welcome: the kernel cuts off what does not fit.
                spare = self._spare = self.pool.take(1 + (INLINE_BYTES if self.proven else MAX_UNPROVEN_FRAME_BYTES))
            try:
                if self._lender is None and self.proven:
                    got = self._receive_with_segment(sock, spare)
                    if got == _SEEN_TO:
                        continue
                else:
                    got = sock.recv_into(spare.view)
                frame = self._parse(spare, got)
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionResetError:
                continue  # the other end died with messages unread; those that it sent are still to come
            except OSError as error:
                self._lose(LinkBroken(self.address, f"cannot receive: {error}"))
                return
            except ValueError as error:
                self._lose(ProtocolViolation(self.address, str(error)))
                return
            if frame is not None and self._handler is not None:
                self._handler.on_frame(*frame)
            elif not got:
                self._lose(LinkBroken(self.address, "the other end closed the connection or died"))

    def _parse(self, spare: Buffer, got: int) -> tuple[Buffer, int] | None:
        """Return the frame in the message of ``got`` bytes in ``spare``, and its size; ``None`` if it brings none.

        Raises:
            ValueError: it is no message, or one that is not welcome.
        """
        if self.proven and got >= _MESSAGE.size:
            magic, slot, generation, _, offset, nbytes = _MESSAGE.unpack_from(spare.view)
            if magic == _LOAN:
                if self._lender is None or got != _LOAN_BYTES:
                    raise ValueError("a reference to memory that is not shared")
                self._check(HEADER_BYTES + nbytes)
                header = bytearray(spare.view[_MESSAGE.size : _LOAN_BYTES])
                return self._lender.borrow(header, (slot, generation), offset, nbytes), HEADER_BYTES + nbytes
            if magic == _SEGMENT:
                raise ValueError("memory is shared a second time, or malformed")
        if not got:
            return None
        self._check(got)
        self._spare = None
        return spare, got

    def _check(self, nbytes: int) -> None:
        if nbytes > self.max_frame:
            raise ValueError(f"frame of {nbytes} bytes exceeds the limit of {self.max_frame}")

    def _receive_with_segment(self, sock: socket.socket, spare: Buffer) -> int:
        """Receive a message; if it shares the peer's memory, open that and return ``_SEEN_TO``.

        Whatever descriptors come are closed.
        """
        got, ancillary, flags, _ = sock.recvmsg_into([spare.view], _ONE_FD)
        fds = array.array("i")
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
        try:
            if got == _MESSAGE.size:
                magic, version, slots, _, offset, _ = _MESSAGE.unpack_from(spare.view)
                if magic == _SEGMENT:
                    if flags & socket.MSG_CTRUNC and not fds:
                        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
                    self._open(fds, version, slots, offset)
                    return _SEEN_TO
        finally:
            for fd in fds:
                os.close(fd)
        return got

    def _open(self, fds: array.array[int], version: int, slots: int, offset: int) -> None:
        if version != _VERSION:
            raise ValueError(f"shared memory of version {version}, this side speaks {_VERSION}")
        if len(fds) != 1:
            raise ValueError("shared memory without its descriptor")
        self._lender = Lender(PeerSegment.open(fds[0]), offset, slots)

    def _lose(self, error: LinkError) -> None:
        handler = self._handler
        self.close()
        if handler is not None:
            handler.on_lost(error)


def _send_with(sock: socket.socket, message: Message, fd: int) -> None:
    sock.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])
