"""Lets several processes begin a layer at the same time, whatever network they are in: a Unix socket with a path."""

from __future__ import annotations

import asyncio
import contextlib
import os
import selectors
import socket
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

_GO = b"g"


class Barrier:
    """The side that counts: once all of ``parties`` have arrived, all go on."""

    def __init__(self, parties: int) -> None:
        self._parties = parties
        self._folder = tempfile.TemporaryDirectory(prefix="janus-barrier-")
        self.path = str(Path(self._folder.name) / "socket")
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self.path)
        self._listener.listen(parties)
        self._stop, self._stopped = os.pipe()
        self._thread = threading.Thread(target=self._serve, name="barrier", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.write(self._stopped, b"x")
        self._thread.join(5)
        self._listener.close()
        os.close(self._stop)
        os.close(self._stopped)
        self._folder.cleanup()

    def _serve(self) -> None:
        members: list[socket.socket] = []
        with selectors.DefaultSelector() as ready:
            ready.register(self._listener, selectors.EVENT_READ)
            ready.register(self._stop, selectors.EVENT_READ)
            arrived = 0
            while True:
                for key, _ in ready.select():
                    if key.fileobj == self._stop:
                        for member in members:
                            member.close()
                        return
                    if key.fileobj is self._listener:
                        member, _ = self._listener.accept()
                        members.append(member)
                        ready.register(member, selectors.EVENT_READ)
                        continue
                    member = key.fileobj  # type: ignore[assignment]
                    got = member.recv(64)
                    if not got:
                        ready.unregister(member)
                        members.remove(member)
                        member.close()
                        continue
                    arrived += len(got)
                if arrived >= self._parties:
                    arrived = 0
                    for member in members:
                        with contextlib.suppress(OSError):  # whoever died is missed by whoever started it
                            member.send(_GO)


class Member:
    """The side that waits, on the running loop."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(path)
        self._socket.setblocking(False)

    async def arrive(self, *, timeout_s: float) -> None:
        """Return when all others have arrived too.

        Raises:
            TimeoutError: they have not within ``timeout_s``.
        """
        self._socket.send(_GO)
        async with asyncio.timeout(timeout_s):
            await asyncio.get_running_loop().sock_recv(self._socket, 1)

    def close(self) -> None:
        """Arrive no more."""
        self._socket.close()
