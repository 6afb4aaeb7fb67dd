"""What an instance says: kept in its log file, shown where that is wanted, and read for where it listens."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import IO, Any

_TAIL_LINES = 15
#: A log line may hold a traceback as JSON.
MAX_LINE_BYTES = 4 << 20


class Output:
    """Of one instance. Whatever becomes of what it says, it is read to its end: who is not read stands still."""

    def __init__(self, sink: IO[bytes], *, show: Callable[[str], None] | None) -> None:
        """``sink``: the log file. ``show``: takes each line of stderr too."""
        self._sink = sink
        self._show = show

    async def announcement(self, stdout: asyncio.StreamReader, found: asyncio.Future[dict[str, Any]]) -> None:
        """Store what comes on stdout; the first line that says where the instance listens goes to ``found`` instead."""
        async for line in _lines(stdout):
            announcement = _announcement(line)
            if announcement is not None and not found.done():
                found.set_result(announcement)
            else:
                self._store(line)

    async def log(self, stderr: asyncio.StreamReader) -> None:
        """Store what comes on stderr."""
        async for line in _lines(stderr):
            self._store(line)
            if self._show is not None:
                with contextlib.suppress(OSError):  # nobody is there to see it
                    self._show(line.decode(errors="replace").rstrip("\n"))

    def _store(self, line: bytes) -> None:
        with contextlib.suppress(OSError):  # a full disk: the log has a gap, and the instance serves on
            self._sink.write(line)


async def _lines(stream: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while True:
        try:
            line = await stream.readline()
        except ValueError:
            continue  # longer than the stream's limit, and dropped
        if not line:
            return
        yield line


def _announcement(line: bytes) -> dict[str, Any] | None:
    try:
        message = json.loads(line)
    except ValueError:
        return None
    wanted = isinstance(message, dict) and message.get("event") == "listening"
    return message if wanted else None


def tail(log: Path, lines: int = _TAIL_LINES) -> tuple[str, ...]:
    """Return the last lines of a log file."""
    try:
        return tuple(log.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return ()
