"""Peers in processes of their own that are killed at any moment, with frames on their way in both directions."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time

from janus.errors import LinkBroken, LinkBusy
from janus.transport import InFrame, Kind, Link, LinkOptions
from tests.transport.helpers import DEADLINE_S, Recorder, dial, needs_shared_memory
from tests.transport.test_processes import peer

pytestmark = needs_shared_memory

PEERS = 6
SIZES = (100, 5_000, 20_000, 300_000)


class Flood(Recorder):
    """Keeps posting to a peer that echoes, as credit allows, and checks every byte that comes back."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._rng = random.Random(seed)
        self._content = self._rng.randbytes(1 << 20)
        self._sent: dict[int, bytes] = {}
        self._number = 0
        self.echoed = 0
        self.closed_at = 0.0

    def pour(self, link: Link) -> None:
        with contextlib.suppress(LinkBusy):
            while True:
                size = self._rng.choice(SIZES)
                start = self._rng.randrange(len(self._content) - size)
                frame = link.allocate(size)
                frame.payload[:] = memoryview(self._content)[start : start + size]
                link.post(frame, kind=Kind.DISPATCH, request_id=self._number + 1)
                self._number += 1
                self._sent[self._number] = self._content[start : start + size]

    def on_frame(self, link: Link, frame: InFrame) -> None:
        assert frame.payload.tobytes() == self._sent.pop(frame.header.request_id)
        frame.release()
        self.echoed += 1
        self._changed.set()
        self.pour(link)

    def on_closed(self, link: Link, error: Exception) -> None:
        self.closed_at = time.monotonic()
        super().on_closed(link, error)  # type: ignore[arg-type]


async def test_peers_die_at_any_moment_and_the_others_notice_nothing() -> None:
    rng = random.Random(7)
    loop = asyncio.get_running_loop()
    with contextlib.ExitStack() as stack:
        children = [stack.enter_context(peer("shm")) for _ in range(PEERS)]
        floods = [Flood(seed) for seed in range(PEERS)]
        links = []
        for (_, port), flood in zip(children, floods, strict=True):
            links.append(await dial("shm", port, flood, options=LinkOptions(silence_s=60)))
        for link, flood in zip(links, floods, strict=True):
            flood.pour(link)
        for index, (child, _) in enumerate(children):
            killed = loop.create_future()

            def kill(pid: int = child.pid, killed: asyncio.Future[float] = killed) -> None:
                os.kill(pid, signal.SIGKILL)
                killed.set_result(time.monotonic())

            loop.call_later(rng.uniform(0.0, 0.05), kill)
            error = await asyncio.wait_for(links[index].wait_closed(), DEADLINE_S)
            assert isinstance(error, LinkBroken) and "closed the connection or died" in str(error)
            assert floods[index].closed_at - await killed < 1.0
            assert not any(link.closed for link in links[index + 1 :])
            marks = [flood.echoed for flood in floods]
            for later in range(index + 1, PEERS):
                await floods[later].until(lambda n=later, marks=marks: floods[n].echoed > marks[n] + 20)  # type: ignore[misc]
        assert all(len(flood.closed) == 1 for flood in floods)
