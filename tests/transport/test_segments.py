"""What a segment promises, host or device: the same tests, each with a second process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.transport.helpers import needs_shared_memory
from tests.transport.segment_side import DEVICE_KINDS, OtherSide, Side, side

pytestmark = needs_shared_memory

SIZE = 4 << 20
PAGE = 4096


@dataclass
class Shared:
    """This process owns a segment of ``SIZE`` bytes, another one has opened it."""

    ours: Side
    theirs: OtherSide


@pytest.fixture(scope="module", params=["host", *DEVICE_KINDS])
def other(request: pytest.FixtureRequest) -> Iterator[OtherSide]:
    """A second process, of each kind in turn."""
    theirs = OtherSide(request.param)
    try:
        yield theirs
    finally:
        theirs.end()


@pytest.fixture
def shared(other: OtherSide) -> Iterator[Shared]:
    ours = side(other.kind)
    exported = ours.make(SIZE)
    assert other.call("open", exported, fds=ours.fds) == SIZE
    yield Shared(ours, other)
    if other.process.poll() is None:
        other.call("close")
    ours.close()


@pytest.mark.parametrize("offset", [0, 64, PAGE + 1, SIZE - 1000])
def test_both_sides_see_the_same_bytes(shared: Shared, offset: int) -> None:
    content, answer = os.urandom(1000), os.urandom(1000)
    shared.ours.put(offset, content)
    assert shared.theirs.call("get", offset, 1000) == content
    shared.theirs.call("put", offset, answer)
    assert shared.ours.get(offset, 1000) == answer


def test_only_what_was_written_changes(shared: Shared) -> None:
    shared.ours.put(PAGE - 1, bytes(PAGE + 2))
    shared.theirs.call("put", PAGE, b"\xff" * PAGE)
    assert shared.ours.get(PAGE - 1, PAGE + 2) == b"\0" + b"\xff" * PAGE + b"\0"


@pytest.mark.parametrize(("offset", "nbytes"), [(SIZE, 1), (SIZE - 1, 2), (0, SIZE + 1), (-1, 2), (-SIZE, 1)])
def test_what_is_not_within_is_refused(shared: Shared, offset: int, nbytes: int) -> None:
    with pytest.raises(ValueError):
        shared.ours.memory.array(offset, nbytes)
    with pytest.raises(RuntimeError, match="ValueError"):
        shared.theirs.call("get", offset, nbytes)


def test_addresses_and_offsets_belong_together(shared: Shared) -> None:
    segment = shared.ours.memory
    _, start = segment.array(0, 1)
    for offset in (0, 64, SIZE - 1):
        assert segment.array(offset, 1)[1] == start + offset
        assert segment.where(start + offset) == offset
    assert segment.where(start - 1) is None
    assert segment.where(start + SIZE) is None


def test_what_was_discarded_reads_as_zeros_and_can_be_written(shared: Shared) -> None:
    shared.ours.put(0, b"\xff" * 3 * PAGE)
    shared.ours.memory.discard(PAGE, PAGE)
    assert shared.theirs.call("get", 0, 3 * PAGE) == b"\xff" * PAGE + bytes(PAGE) + b"\xff" * PAGE
    shared.theirs.call("put", PAGE, b"again")
    assert shared.ours.get(PAGE, 5) == b"again"


def test_a_peer_that_dies_takes_nothing_with_it(shared: Shared) -> None:
    mortal = OtherSide(shared.ours.kind)
    try:
        exported = shared.ours.memory.export()
        mortal.call("open", exported if isinstance(exported, bytes) else b"", fds=shared.ours.fds)
        mortal.call("put", 0, b"last words")
    finally:
        mortal.end()
    assert shared.ours.get(0, 10) == b"last words"
    assert shared.theirs.call("get", 0, 10) == b"last words"


@pytest.mark.parametrize("nbytes", [0, -1, 1000, SIZE - 1, SIZE + PAGE])
def test_a_segment_of_a_wrong_size_is_refused(shared: Shared, nbytes: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        side(shared.ours.kind).make(nbytes)
