"""Streams of two processes in order by events, without a host that waits; on a CUDA device too where there is one.

What forgetting an event does can be told only where it does the same each time: see ``test_device_memory``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.transport.helpers import needs_shared_memory
from tests.transport.segment_side import DEVICE_KINDS, DeviceSide, OtherSide

pytestmark = needs_shared_memory

SIZE = 4 << 20
N = 1000


@pytest.fixture(scope="module", params=DEVICE_KINDS)
def other(request: pytest.FixtureRequest) -> Iterator[OtherSide]:
    theirs = OtherSide(request.param)
    try:
        yield theirs
    finally:
        theirs.end()


@pytest.fixture
def ours(other: OtherSide) -> Iterator[DeviceSide]:
    """This side owns a segment that the other side has opened, as both events are."""
    ours = DeviceSide(other.kind)
    other.call("side", other.kind)
    other.call("open", ours.make(SIZE))
    other.call("open_event", ours.export_event())
    ours.open_event(other.call("export_event"))
    yield ours
    other.call("close")
    ours.close()


def test_a_reader_that_waits_for_the_event_sees_what_was_written(ours: DeviceSide, other: OtherSide) -> None:
    content = os.urandom(N)
    ours.copy_in(64, content)
    ours.record()
    # Neither side has waited for a stream of this one; the reader's finishes it.
    other.call("wait")
    other.call("copy_out", 64, N)
    assert other.call("copied") == content


def test_a_block_is_written_again_only_after_the_reader_has_read(ours: DeviceSide, other: OtherSide) -> None:
    first, second = os.urandom(N), os.urandom(N)
    ours.copy_in(0, first)
    ours.record()
    other.call("wait")
    other.call("copy_out", 0, N)
    other.call("record")
    ours.wait()
    ours.copy_in(0, second)
    ours.synchronize()  # which makes the other side read first
    assert ours.get(0, N) == second
    assert other.call("copied") == first


def test_a_long_exchange_of_turns_stays_in_order(ours: DeviceSide, other: OtherSide) -> None:
    """Both write to the same block in turns, nobody waits until the end: then every copy happens, across processes."""
    for turn in range(20):
        if turn:
            ours.wait()
        ours.copy_in(0, bytes([turn]) * N)
        ours.record()
        other.call("wait")
        other.call("copy_out", 0, N)
        other.call("copy_in", 0, bytes([100 + turn]) * N)
        other.call("record")
    ours.wait()
    ours.copy_out(0, N)
    assert ours.copied() == bytes([119]) * N
