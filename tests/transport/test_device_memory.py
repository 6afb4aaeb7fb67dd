"""Device memory between processes: streams, events, devices, and what a peer may say. See ``host_cuda`` for how."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus.errors import ConfigError
from janus.transport.cuda import CudaError, CudaRuntime, CupyRuntime
from janus.transport.device_memory import SMALLEST, DeviceEvent, DeviceSegment, PeerDeviceEvent, PeerDeviceMemory
from tests.transport.helpers import needs_shared_memory
from tests.transport.host_cuda import BUS_IDS, UNWRITTEN, HostCuda
from tests.transport.host_cupy import runtime_on
from tests.transport.segment_side import DeviceSide, OtherSide

pytestmark = needs_shared_memory

SIZE = 2 * SMALLEST
N = 1000
STALE = bytes([UNWRITTEN]) * N


@pytest.fixture(scope="module", params=["host-cuda", "host-cupy"])
def other(request: pytest.FixtureRequest) -> Iterator[OtherSide]:
    theirs = OtherSide(request.param)
    try:
        yield theirs
    finally:
        theirs.end()


@pytest.fixture
def start(other: OtherSide) -> Iterator[Callable[..., DeviceSide]]:
    """A function that makes this side, which owns a segment that the other side has opened, as both events are."""
    sides: list[DeviceSide] = []

    def started(device: int = 0, *, other_device: int = 0, other_sees: tuple[str, ...] = BUS_IDS) -> DeviceSide:
        ours = DeviceSide(other.kind, device)
        sides.append(ours)
        other.call("side", other.kind, other_device, other_sees)
        assert other.call("open", ours.make(SIZE)) == SIZE
        other.call("open_event", ours.export_event())
        ours.open_event(other.call("export_event"))
        return ours

    yield started
    other.call("close")
    assert other.call("held") == [0, 0]
    for ours in sides:
        ours.close()
        assert ours.held() == [0, 0]


Start = Callable[..., DeviceSide]


# -- order without waiting --------------------------------------------------------------------------------------------


def test_a_reader_that_does_not_wait_sees_stale_bytes(start: Start, other: OtherSide) -> None:
    ours = start()
    ours.copy_in(64, os.urandom(N))
    ours.record()
    other.call("copy_out", 64, N)
    assert other.call("copied") == STALE


def test_a_wait_that_came_before_the_record_orders_nothing(start: Start, other: OtherSide) -> None:
    ours = start()
    other.call("wait")
    ours.copy_in(0, os.urandom(N))
    ours.record()
    other.call("copy_out", 0, N)
    assert other.call("copied") == STALE


def test_an_event_does_not_stand_for_what_came_after_it(start: Start, other: OtherSide) -> None:
    ours, first = start(), os.urandom(N)
    ours.copy_in(0, first)
    ours.record()
    ours.copy_in(0, os.urandom(N))
    other.call("wait")
    other.call("copy_out", 0, N)
    assert other.call("copied") == first


def test_a_writer_that_does_not_wait_spoils_what_is_being_read(start: Start, other: OtherSide) -> None:
    ours, second = start(), os.urandom(N)
    ours.copy_in(0, os.urandom(N))
    ours.record()
    other.call("wait")
    other.call("copy_out", 0, N)
    other.call("record")
    ours.copy_in(0, second)
    ours.synchronize()
    assert other.call("copied") == second


# -- devices ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("owner", "reader", "sees", "wanted"),
    [
        (0, 0, BUS_IDS, []),
        (1, 1, BUS_IDS, []),
        (0, 1, BUS_IDS, [[1, 0], [0, 1]]),
        (1, 0, BUS_IDS, [[0, 1], [1, 0]]),
        # The same two devices under other numbers, as with another CUDA_VISIBLE_DEVICES.
        (0, 0, BUS_IDS[::-1], [[0, 1], [1, 0]]),
        # The owner's device is invisible: CUDA is left to find out.
        (0, 0, BUS_IDS[1:], []),
    ],
)
def test_copies_name_the_devices_as_this_process_numbers_them(
    start: Start, other: OtherSide, *, owner: int, reader: int, sees: tuple[str, ...], wanted: list[list[int]]
) -> None:
    ours, content, answer = start(owner, other_device=reader, other_sees=sees), os.urandom(N), os.urandom(N)
    ours.copy_in(0, content)
    ours.record()
    other.call("wait")
    other.call("copy_out", 0, N)
    assert other.call("copied") == content
    other.call("copy_in", SIZE - N, answer)
    other.call("record")
    ours.wait()
    ours.copy_out(SIZE - N, N)
    assert ours.copied() == answer
    assert other.call("peer_copies") == wanted
    assert ours.peer_copies() == []


def runtimes() -> list[CudaRuntime]:
    return [HostCuda(), runtime_on(HostCuda())]


@pytest.mark.parametrize("cuda", runtimes(), ids=["host-cuda", "host-cupy"])
def test_a_missing_device_is_named(cuda: CudaRuntime) -> None:
    with pytest.raises(CudaError, match=r"device 2\b|invalid device"):
        DeviceSegment(cuda, SIZE, device=2)
    with pytest.raises(CudaError, match=r"device 2\b|invalid device"):
        DeviceEvent(cuda, device=2)
    gc.collect()


# -- what a peer may say, and bounds ----------------------------------------------------------------------------------


def changed(exported: bytes, at: int, new: bytes) -> bytes:
    return exported[:at] + new + exported[at + len(new) :]


#: Where things lie: magic 0, version 4, owner 8, generation 16, bytes 24, bus id 32, handle 48.
LIES = {
    "nothing": (lambda good: b"", "no device memory"),
    "cut off": (lambda good: good[:-1], "no device memory"),
    "too long": (lambda good: good + b"\0", "no device memory"),
    "other magic": (lambda good: changed(good, 0, b"JEVT"), "no device memory"),
    "other version": (lambda good: changed(good, 4, b"\x09"), "version 9, this side speaks 1"),
    "empty": (lambda good: changed(good, 24, bytes(8)), "of 0 bytes is no segment"),
    "small": (lambda good: changed(good, 24, (SMALLEST // 2).to_bytes(8, "little")), "is no segment"),
    "no power of two": (lambda good: changed(good, 24, (SIZE + 1).to_bytes(8, "little")), "is no segment"),
    "more than there is": (lambda good: changed(good, 24, (2 * SIZE).to_bytes(8, "little")), f"has {SIZE} bytes"),
    "no bus id": (lambda good: changed(good, 32, b"\xff"), "no PCI bus id"),
    "another memory": (lambda good: changed(good, 56, b"\1"), "invalid resource handle"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_peer_that_lies_about_its_memory_is_named(start: Start, other: OtherSide, lie: str) -> None:
    ours = start()
    make, words = LIES[lie]
    held = other.call("held")
    with pytest.raises(RuntimeError, match=words):
        other.call("open", make(ours.memory.export()))
    assert other.call("held") == held
    with pytest.raises(RuntimeError, match="no event"):
        other.call("open_event", make(ours.memory.export()))


def test_what_a_process_exports_opens_nothing_in_itself(start: Start) -> None:
    ours = start()
    with pytest.raises(ValueError, match="of this process"):
        PeerDeviceMemory.open(ours.cuda, ours.memory.export())
    with pytest.raises(ValueError, match="of this process"):
        PeerDeviceEvent.open(ours.cuda, ours.export_event())


def test_memory_of_an_owner_that_has_died_is_named(start: Start) -> None:
    ours, owner = start(), OtherSide("host-cuda")
    try:
        exported, event = owner.call("make", SIZE), owner.call("export_event")
    finally:
        owner.end()
    with pytest.raises(CudaError, match="gone"):
        PeerDeviceMemory.open(ours.cuda, exported)
    with pytest.raises(CudaError, match="does not answer"):
        PeerDeviceEvent.open(ours.cuda, event)


@pytest.mark.parametrize(("offset", "nbytes"), [(SIZE, 1), (SIZE - 1, 2), (0, SIZE + 1), (-1, 2), (0, 0), (0, -1)])
def test_copies_stay_within(start: Start, other: OtherSide, offset: int, nbytes: int) -> None:
    ours = start()
    for copy in (ours.memory.copy_in, ours.memory.copy_out, lambda o, _, n, __: ours.memory.discard(o, n)):
        with pytest.raises(ValueError, match="are not within"):
            copy(offset, 0, nbytes, ours.stream)
    if nbytes > 0:
        with pytest.raises(RuntimeError, match="are not within"):
            other.call("copy_out", offset, nbytes)


def test_what_is_closed_says_so_and_closes_twice(start: Start) -> None:
    ours = start()
    segment, event = ours.memory, DeviceEvent(ours.cuda)
    for thing in (segment, event):
        thing.close()
        thing.close()
        with pytest.raises(ValueError, match="closed"):
            thing.export()
    for use in (lambda: segment.array(0, 1), lambda: segment.copy_in(0, 0, 1, 0), lambda: segment.discard(0, 1)):
        with pytest.raises(ValueError, match="closed"):
            use()
    with pytest.raises(ValueError, match="closed"):
        event.record(ours.stream)
    assert segment.where(0) is None


def test_what_is_dropped_is_given_back_and_an_array_keeps_it() -> None:
    cuda = HostCuda()
    segment = DeviceSegment(cuda, SIZE)
    event = DeviceEvent(cuda)
    array, _ = segment.array(0, 10)
    assert event and array[0] == UNWRITTEN
    del segment, event
    gc.collect()
    assert cuda.held == (1, 0)
    del array
    gc.collect()
    assert cuda.held == (0, 0)


def test_a_segment_opened_twice_is_closed_twice(start: Start, other: OtherSide) -> None:
    ours = start()
    again = OtherSide("host-cuda")
    try:
        exported = ours.memory.export()
        again.call("open", exported)
        first = again.call("held")
        again.call("open", exported)  # drops, and so closes, the first
        assert again.call("held") == first
        again.call("put", 0, b"still there")
    finally:
        again.end()
    assert ours.get(0, 11) == b"still there"


def test_segments_are_told_apart() -> None:
    cuda = HostCuda()
    first, second = DeviceSegment(cuda, SIZE), DeviceSegment(cuda, SIZE)
    assert first.generation != second.generation
    assert first.export() != second.export()


# -- blocks -----------------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 300) | st.integers(1, SMALLEST)), max_size=60))
def test_blocks_lie_within_apart_and_aligned_and_all_come_back(events: list[tuple[bool, int]]) -> None:
    segment = DeviceSegment(HostCuda(), SMALLEST)
    held: dict[int, int] = {}
    for take, nbytes in events:
        if take:
            offset = segment.take(nbytes)
            if offset is None:
                assert held
                continue
            assert offset % 256 == 0
            assert offset + nbytes <= SMALLEST
            assert all(offset + nbytes <= start or start + size <= offset for start, size in held.items())
            held[offset] = nbytes
        elif held:
            offset, size = held.popitem()
            segment.give(offset, size)
    for offset, size in held.items():
        segment.give(offset, size)
    assert segment.free_bytes == SMALLEST
    assert segment.take(SMALLEST) == 0


@pytest.mark.parametrize("nbytes", [0, -1])
def test_a_block_of_nothing_is_refused(nbytes: int) -> None:
    segment = DeviceSegment(HostCuda(), SMALLEST)
    with pytest.raises(ValueError, match="a block of"):
        segment.take(nbytes)
    assert segment.take(SMALLEST + 1) is None


# -- CuPy -------------------------------------------------------------------------------------------------------------


def test_without_cupy_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(ConfigError, match=r"CuPy cannot be imported.*cu12"):
        CupyRuntime()


def test_without_a_device_the_remedy_is_named() -> None:
    with pytest.raises(ConfigError, match=r"no CUDA device.*CUDA_VISIBLE_DEVICES"):
        runtime_on(HostCuda(visible=()))


def test_what_cuda_refuses_is_named_with_the_device() -> None:
    with pytest.raises(CudaError, match="cannot export memory on device 1: invalid argument"):
        runtime_on(HostCuda()).memory_handle(1, 4096)
