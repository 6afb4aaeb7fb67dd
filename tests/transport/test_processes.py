"""A peer in another process that stops, dies, or ends in good order, with and without frames on their way."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from janus.errors import LinkBroken, LinkBusy
from janus.messages.control import Leave
from janus.transport import LinkOptions, TransportKind
from tests.transport.helpers import Recorder, dial, needs_shared_memory, post
from tests.waiting import eventually

ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def peer(kind: TransportKind) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A listening process, and its port."""
    command = [sys.executable, "-m", "tests.transport.peer_process", kind]
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        yield child, int(child.stdout.readline())
    finally:
        child.kill()
        child.wait()
        assert child.stdout is not None
        child.stdout.close()


@pytest.fixture(params=["ucx", "tcp", pytest.param("shm", marks=needs_shared_memory)])
def over(request: pytest.FixtureRequest) -> TransportKind:
    found: TransportKind = request.param
    return found


async def test_a_peer_that_is_killed_is_noticed_at_once(over: TransportKind) -> None:
    with peer(over) as (child, port):
        client = Recorder()
        link = await dial(over, port, client)
        await link.call(Leave(reason="x"), timeout_s=5)
        killed = time.monotonic()
        os.kill(child.pid, signal.SIGKILL)
        error = await link.wait_closed()
        assert time.monotonic() - killed < 1
        assert isinstance(error, LinkBroken) and "expert-0" in str(error)
        assert client.closed == [error]


async def test_a_peer_that_is_killed_with_large_frames_on_their_way(over: TransportKind) -> None:
    with peer(over) as (child, port):
        client = Recorder()
        link = await dial(over, port, client, options=LinkOptions(silence_s=60))
        for _ in range(4):
            post(link, bytes(8 << 20))
        await client.until(lambda: len(client.frames) >= 1)
        os.kill(child.pid, signal.SIGSTOP)
        with contextlib.suppress(LinkBusy):
            for _ in range(100):
                post(link, bytes(1 << 20))
        killed = time.monotonic()
        os.kill(child.pid, signal.SIGKILL)
        assert isinstance(await link.wait_closed(), LinkBroken)
        assert time.monotonic() - killed < 1
        assert len(client.closed) == 1


async def test_a_peer_that_hangs_is_declared_silent_and_named(over: TransportKind) -> None:
    with peer(over) as (child, port):
        client = Recorder()
        link = await dial(over, port, client, options=LinkOptions(heartbeat_s=0.1, silence_s=1.0))
        await eventually(lambda: link.stats().rtt_ms is not None)
        os.kill(child.pid, signal.SIGSTOP)
        stopped = time.monotonic()
        error = await link.wait_closed()
        assert 0.8 < time.monotonic() - stopped < 4
        assert isinstance(error, LinkBroken) and "expert-0: silent for" in str(error)
        # It comes back to find its link gone, and can be dialled again.
        os.kill(child.pid, signal.SIGCONT)
        again = await dial(over, port, Recorder())
        assert await again.call(Leave(reason="back"), timeout_s=5) == Leave(reason="back")
        await again.close("done")


async def test_a_peer_that_ends_in_good_order_says_so_and_exits_0(over: TransportKind) -> None:
    with peer(over) as (child, port):
        link = await dial(over, port, Recorder())
        child.terminate()
        assert "SIGTERM" in str(await link.wait_closed())
        assert child.wait(timeout=5) == 0
