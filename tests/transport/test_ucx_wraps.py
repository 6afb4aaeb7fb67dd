"""Wrapping memory for UCX takes long, so it is done once for what comes again, and what is kept of it is bounded."""

from __future__ import annotations

import pytest

from janus.transport import ucx_wire
from janus.transport.ucx import Engine
from tests.transport.helpers import Echo, Recorder, linked, post


async def trips(sizes: list[int]) -> tuple[int, int]:
    """Echo a frame of each size in turn; return how often memory was wrapped, and the most wraps that memory keeps."""
    client, engine = Recorder(), Engine.acquire()
    made, kept, wrap = 0, 0, engine.array

    def counted(memory: object) -> object:
        nonlocal made
        made += 1
        return wrap(memory)

    async def heard(count: int) -> None:
        await client.until(lambda: len(client.payloads) == count)

    engine.array = counted
    try:
        async with linked("ucx", client, Echo()) as (link, server):
            for number, size in enumerate(sizes, 1):
                post(link, bytes([number % 256]) * size)
                await heard(number)
            for end in (link, server):
                for free in end._wire.pool._free.values():
                    kept = max(kept, *(len(memory[3] or ()) for memory in free))
    finally:
        engine.release()
    assert client.payloads == [bytes([number % 256]) * size for number, size in enumerate(sizes, 1)]
    return made, kept


async def test_frames_of_sizes_that_come_again_are_not_wrapped_again() -> None:
    sizes = [2100, 3900, 2500, 3000, 2101]
    once, _ = await trips(sizes * 4)
    often, _ = await trips(sizes * 40)
    assert often <= once + len(sizes), "nothing new after all sizes have met all memory"


async def test_no_memory_keeps_a_wrap_for_every_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ucx_wire, "_MAX_WRAPS", 8)
    _, kept = await trips(list(range(2100, 3900, 7)))
    assert 4 < kept <= 8
