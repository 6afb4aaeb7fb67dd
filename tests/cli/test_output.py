"""What an instance says is read to its end, whatever becomes of it: who is not read stands still."""

from __future__ import annotations

import asyncio
import io
from typing import Any

from janus.cluster.output import Output


class Full(io.RawIOBase):
    """A file on a disk that is full."""

    def write(self, data: Any) -> int:
        raise OSError(28, "No space left on device")


def stream(*lines: bytes, limit: int = 1 << 16) -> asyncio.StreamReader:
    """What a process wrote before it ended."""
    reader = asyncio.StreamReader(limit=limit)
    reader.feed_data(b"".join(lines))
    reader.feed_eof()
    return reader


async def test_the_first_announcement_is_taken_and_all_else_kept() -> None:
    sink, found = io.BytesIO(), asyncio.get_running_loop().create_future()
    lines = [b"one\n", b'{"event": "listening", "port": 5}\n', b'{"event": "listening", "port": 6}\n', b"[]\n"]
    await Output(sink, show=None).announcement(stream(*lines), found)
    assert found.result() == {"event": "listening", "port": 5}
    assert sink.getvalue() == lines[0] + lines[2] + lines[3]


async def test_a_full_disk_and_a_closed_terminal_leave_the_instance_alone() -> None:
    shown: list[str] = []

    def show(line: str) -> None:
        shown.append(line)
        raise BrokenPipeError

    await Output(Full(), show=show).log(stream(b"one\n", b"two\n"))
    assert shown == ["one", "two"]


async def test_a_line_beyond_the_limit_is_dropped_and_the_next_one_read() -> None:
    sink = io.BytesIO()
    await Output(sink, show=None).log(stream(b"x" * 100 + b"\n", b"after\n", limit=50))
    assert sink.getvalue() == b"after\n"
