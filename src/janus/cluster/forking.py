"""Instances forked from a process that has loaded what they need (``nursery.py``): the launcher's side."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, Process
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from janus.cluster.nursery import MAX_PACKET_BYTES
from janus.errors import JanusError

log = structlog.get_logger()

#: For its end once it is killed.
_REAP_LIMIT_S = 5.0
#: In the launcher's directory of logs.
NURSERY_LOG = "nursery.log"
#: The nursery shows its children's command lines where its own was, so its own has to be long.
_PADDING = "-" * 4096
_GONE = "the process that instances are forked from has ended"


class NurseryGone(JanusError):
    """The process that forks ended, and with it those that it forked."""


@dataclass(slots=True, eq=False)
class Forked:
    """A child, in the words of ``asyncio.subprocess.Process``."""

    pid: int
    stdout: asyncio.StreamReader
    stderr: asyncio.StreamReader | None
    ended: asyncio.Future[int]
    #: Names the process itself, so that no signal reaches another one that got its number.
    pidfd: int

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal. Raises ProcessLookupError when it has ended."""
        if self.ended.done():
            raise ProcessLookupError
        signal.pidfd_send_signal(self.pidfd, number)

    async def wait(self) -> int:
        """Return its exit status, negative for a signal, when it has ended."""
        return await asyncio.shield(self.ended)


@dataclass(slots=True)
class _Asked:
    answer: asyncio.Future[Forked]
    stdout: asyncio.StreamReader
    stderr: asyncio.StreamReader | None


@dataclass(slots=True, eq=False)
class Nursery:
    """One nursery and its children. For one loop; ``close`` when all children have ended."""

    process: Process
    pidfd: int
    link: socket.socket
    asked: deque[_Asked] = field(default_factory=deque)
    children: dict[int, Forked] = field(default_factory=dict)
    gone: bool = False

    @classmethod
    async def open(cls, modules: Sequence[str], *, environ: Mapping[str, str], log_dir: Path) -> Nursery:
        """Start one that loads ``modules``; it may be asked already while it does.

        Raises:
            OSError: no process could be made.
        """
        link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, (log_dir / NURSERY_LOG).open("ab", buffering=0) as log:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "janus.cluster.nursery", str(theirs.fileno()), str(os.getpid())),
                ",".join(modules),
                _PADDING,
                stdin=DEVNULL,
                stdout=log,
                stderr=log,
                env=environ,
                start_new_session=True,
                pass_fds=[theirs.fileno()],
            )
        link.setblocking(False)
        self = cls(process, os.pidfd_open(process.pid), link)
        asyncio.get_running_loop().add_reader(link, self._on_readable)
        return self

    async def spawn(
        self,
        module: str,
        arguments: Sequence[str],
        *,
        environ: Mapping[str, str],
        stderr: int | None,
        fds: Sequence[int],
        limit: int,
    ) -> Forked:
        """Fork a child that runs ``module``, as ``python -m`` would. A cancelled call leaves none behind.

        Args:
            stderr: a file that it writes to; ``None`` for a pipe.
            fds: descriptors that it inherits under the numbers that they have here.
            limit: bytes of the longest line that is read from it.

        Raises:
            NurseryGone: the nursery ended.
            OSError: no process could be made.
        """
        request: dict[str, Any] = {
            "module": module,
            "arguments": list(arguments),
            "environment": dict(environ),
            "fds": [0, 1, 2, *fds],
        }
        packet = json.dumps(request).encode()
        if len(packet) > MAX_PACKET_BYTES:
            raise OSError(0, f"its environment and arguments are {len(packet)} bytes, too many to hand on")
        pipes: list[_Pipe] = []
        try:
            pipes.append(await _Pipe.open(limit))
            if stderr is None:
                pipes.append(await _Pipe.open(limit))
            return await self._ask(packet, pipes, pipes[-1].writing if stderr is None else stderr, fds)
        except BaseException:
            for pipe in pipes:
                pipe.transport.close()
            raise
        finally:
            for pipe in pipes:
                os.close(pipe.writing)

    async def _ask(self, packet: bytes, pipes: Sequence[_Pipe], stderr: int, fds: Sequence[int]) -> Forked:
        readers = [pipe.reader for pipe in pipes]
        asked = _Asked(asyncio.get_running_loop().create_future(), readers[0], readers[1] if readers[1:] else None)
        null = os.open(os.devnull, os.O_RDONLY)
        try:
            if self.gone:
                raise NurseryGone(_GONE)
            socket.send_fds(self.link, [packet], [null, pipes[0].writing, stderr, *fds])
        except (BrokenPipeError, ConnectionResetError) as error:
            raise NurseryGone(_GONE) from error
        finally:
            os.close(null)
        self.asked.append(asked)
        return await asked.answer

    async def close(self) -> None:
        """End the nursery, and whoever of its children still runs (they get SIGTERM). Once only."""
        self._end()
        with contextlib.suppress(ProcessLookupError):
            # Not ``Process.kill``: it looks for the status first, and may take it from asyncio, which waits for it.
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        os.close(self.pidfd)
        try:
            async with asyncio.timeout(_REAP_LIMIT_S):
                await self.process.wait()
        except TimeoutError:
            log.error("process_does_not_end", child="nursery", pid=self.process.pid, limit_s=_REAP_LIMIT_S)

    def _on_readable(self) -> None:
        while not self.gone:
            try:
                packet, fds, _, _ = socket.recv_fds(self.link, MAX_PACKET_BYTES, 1)
            except BlockingIOError:
                return
            except OSError:
                packet, fds = b"", []
            if not packet:
                self._end()
                return
            self._take(json.loads(packet), fds)

    def _take(self, message: dict[str, Any], fds: list[int]) -> None:
        if "status" in message:
            child = self.children.pop(message["pid"])
            os.close(child.pidfd)
            child.ended.set_result(message["status"])
            return
        asked = self.asked.popleft()
        if "problem" in message:
            if not asked.answer.cancelled():
                asked.answer.set_exception(OSError(0, message["problem"]))
            return
        ended = asyncio.get_running_loop().create_future()
        child = Forked(message["pid"], asked.stdout, asked.stderr, ended, pidfd=fds[0])
        self.children[child.pid] = child
        if asked.answer.cancelled():
            child.send_signal(signal.SIGKILL)
        else:
            asked.answer.set_result(child)

    def _end(self) -> None:
        """The nursery is gone: nobody reports the ends of its children any more, which get SIGTERM from the kernel."""
        if self.gone:
            return
        self.gone = True
        loop = asyncio.get_running_loop()
        loop.remove_reader(self.link)
        self.link.close()
        while self.asked:
            answer = self.asked.popleft().answer
            if not answer.cancelled():
                answer.set_exception(NurseryGone(_GONE))
        for child in self.children.values():
            loop.add_reader(child.pidfd, self._orphan_ended, child)

    def _orphan_ended(self, child: Forked) -> None:
        asyncio.get_running_loop().remove_reader(child.pidfd)
        os.close(child.pidfd)
        del self.children[child.pid]
        child.ended.set_result(-signal.SIGTERM)


@dataclass(frozen=True, slots=True)
class _Pipe:
    """A pipe that is read here; whoever opened it closes both ends."""

    reader: asyncio.StreamReader
    transport: asyncio.ReadTransport
    writing: int

    @classmethod
    async def open(cls, limit: int) -> _Pipe:
        reading, writing = os.pipe()
        reader = asyncio.StreamReader(limit=limit)
        try:
            transport, _ = await asyncio.get_running_loop().connect_read_pipe(
                lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(reading, "rb", buffering=0)
            )
        except BaseException:
            os.close(writing)
            raise
        return cls(reader, transport, writing)
