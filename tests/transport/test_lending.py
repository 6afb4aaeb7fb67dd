"""Shared buffers: where they lie, who shares them, when their memory is used again, and what is lent."""

from __future__ import annotations

import fcntl
import gc
import os
import subprocess
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from janus.transport import lending
from janus.transport.buffers import Buffer, BufferPool
from janus.transport.lending import SLOTS, Loans, SharedPool
from janus.transport.segment import HostSegment, PeerSegment
from tests.transport.helpers import needs_shared_memory

pytestmark = needs_shared_memory

SIZE = 1 << 20
TABLE_BYTES = 4 * SLOTS


def small_pool(keep_bytes: int = SIZE) -> SharedPool:
    return SharedPool(HostSegment(SIZE), keep_bytes=keep_bytes)


@pytest.mark.parametrize("make", [BufferPool, small_pool], ids=["private", "shared"])
@given(data=st.data())
def test_memory_is_used_again_when_every_holder_has_released_it_and_not_before(
    make: type[BufferPool], data: st.DataObject
) -> None:
    """Against a model: a set of holders for each piece of memory."""
    pool = make()
    holders: dict[Buffer, int] = {}
    for _ in range(data.draw(st.integers(0, 60))):
        action = data.draw(st.sampled_from(["take", "share", "release", "twice"]))
        if action == "take":
            buffer = pool.take(data.draw(st.integers(1, 5000)))
            address = buffer.address
            assert address not in holders.values()
            buffer.array[:8] = address % 251
            holders[buffer] = address
        elif holders:
            chosen = data.draw(st.sampled_from(sorted(holders, key=id)))
            if action == "share":
                other = chosen.share(64)
                assert other.address + other.at == chosen.address + chosen.at + 64
                holders[other] = holders[chosen]
            else:
                del holders[chosen]
                for _ in range(1 + (action == "twice")):
                    chosen.release()
        assert all((buffer.array[:8] == address % 251).all() for buffer, address in holders.items())


def test_a_block_that_is_dropped_comes_back_when_its_last_view_is_gone() -> None:
    pool = small_pool()
    start = pool.used_bytes
    buffer = pool.take(100_000)
    view = buffer.array[64:200][3:]
    again = buffer.share(64)
    del buffer, again
    gc.collect()
    assert pool.used_bytes == start + (1 << 17)
    del view
    gc.collect()
    assert pool.used_bytes == start


def test_what_exceeds_the_bound_goes_back_to_the_system() -> None:
    pool = small_pool(keep_bytes=1 << 17)
    buffers = [pool.take(1 << 17) for _ in range(4)]
    for buffer in buffers:
        buffer.array[:] = 7
        buffer.release()
    del buffers, buffer
    assert pool.kept_bytes == pool.used_bytes == 1 << 17
    fresh = [pool.take(1 << 17) for _ in range(4)]
    # Kept memory comes as it was; what was given back comes from the system, as zeros.
    assert sorted(int(buffer.array[0]) for buffer in fresh) == [0, 0, 0, 7]


def test_small_blocks_make_room_for_a_large_one() -> None:
    pool = small_pool()
    for buffer in [pool.take(1 << 12) for _ in range(SIZE >> 12)]:
        buffer.release()
    del buffer
    assert pool.used_bytes == SIZE
    assert pool.segment.where(pool.take(SIZE).address) is not None


def test_an_exhausted_segment_gives_private_memory() -> None:
    pool = small_pool()
    whole = pool.take(SIZE)
    more = pool.take(5000)
    assert pool.segment.where(whole.address) == 0 and pool.segment.where(more.address) is None
    for buffer in (whole, more):
        buffer.release()
    del whole, more, buffer
    assert pool.segment.where(pool.take(SIZE // 2).address) is not None


def test_threads_never_share_a_block_by_accident() -> None:
    pool = small_pool(keep_bytes=1 << 14)
    clashes: list[int] = []

    def work(mark: int) -> None:
        for number in range(1000):
            buffer = pool.take(1000 << number % 4)
            shared = buffer.share(0)
            buffer.array[:64] = mark
            buffer.release()
            if (shared.array[:64] != mark).any():
                clashes.append(mark)
            if number % 5:
                shared.release()

    threads = [threading.Thread(target=work, args=(mark,)) for mark in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    del threads
    gc.collect()
    assert clashes == []
    assert pool.used_bytes == pool.kept_bytes <= 1 << 14


@given(st.lists(st.tuples(st.sampled_from(["lend", "release", "collect"]), st.integers(0, 99)), max_size=120))
def test_a_loan_ends_when_the_borrower_says_so_in_any_order(events: list[tuple[str, int]]) -> None:
    pool = small_pool()
    loans = pool.loans()
    table = loans._table
    out: dict[tuple[int, int], int] = {}
    for what, number in events:
        if what == "lend":
            buffer = pool.take(100)
            assert buffer.address not in out.values()
            loan = loans.lend(buffer)
            assert loan is not None and loan[0] not in {slot for slot, _ in out}
            out[loan] = buffer.address
        elif what == "release" and out:
            slot, generation = sorted(out)[number % len(out)]
            del out[slot, generation]
            table.slots[slot] = generation
        else:
            loans.collect()
        assert len(loans) >= len(out)
    assert loans.forget() is table and len(loans) == 0
    assert pool.used_bytes == pool.kept_bytes + TABLE_BYTES


def test_a_late_borrower_ends_no_loan_but_its_own() -> None:
    pool = small_pool()
    loans = pool.loans()
    table = loans._table
    first = loans.lend(pool.take(100))
    assert first is not None
    pool.quarantine(loans)
    loans.forget()
    later = Loans(table)
    second = later.lend(pool.take(100))
    assert second is not None and second[0] == first[0] and second[1] != first[1]
    table.slots[first[0]] = first[1]
    later.collect()
    assert len(later) == 1


def test_a_held_loan_does_not_hold_up_the_others() -> None:
    pool = small_pool()
    loans = pool.loans()
    table = loans._table
    loans.lend(pool.take(100))
    for _ in range(3 * SLOTS):
        loan = loans.lend(pool.take(100))
        assert loan is not None
        table.slots[loan[0]] = loan[1]
    assert len(loans) < 40


def test_more_loans_than_slots_are_refused() -> None:
    pool = SharedPool(HostSegment(16 << 20))
    loans = pool.loans()
    assert all(loans.lend(pool.take(100)) is not None for _ in range(SLOTS))
    assert loans.lend(pool.take(100)) is None


def test_quarantine_ends_in_time_or_when_it_is_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(lending.time, "monotonic", lambda: clock[0])
    pool = small_pool(keep_bytes=0)
    lost = []
    for nbytes in (1 << 16, 1 << 17, 1 << 17):
        loans = pool.loans()
        loans.lend(pool.take(nbytes))
        pool.quarantine(loans)
        lost.append(loans)
    # A quarter of the segment at most: the last two are as much.
    assert [len(loans) for loans in lost] == [0, 1, 1]
    clock[0] += lending.QUARANTINE_S - 1
    pool.settle()
    assert [len(loans) for loans in lost] == [0, 1, 1]
    clock[0] += 2
    pool.settle()
    assert [len(loans) for loans in lost] == [0, 0, 0]
    assert pool.used_bytes == 3 * TABLE_BYTES


def test_a_segment_is_mapped_once_and_shows_the_same_bytes() -> None:
    segment = HostSegment(SIZE)
    first, second = PeerSegment.open(segment.export()), PeerSegment.open(segment.export())
    assert first is second
    ours, address = segment.array(4096, 100)
    theirs, other = first.array(4096, 100)
    ours[:] = 5
    assert (theirs == 5).all() and address != other == theirs.ctypes.data


def test_a_borrower_can_neither_resize_nor_seal_a_segment() -> None:
    segment = HostSegment(SIZE)
    fd = segment.export()
    for change in (
        lambda: os.ftruncate(fd, 4096),
        lambda: os.ftruncate(fd, 2 * SIZE),
        lambda: fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE),
    ):
        with pytest.raises(PermissionError):
            change()


@pytest.mark.parametrize("nbytes", [0, 1000, 12288])
def test_a_segment_of_a_wrong_size_is_refused(nbytes: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        HostSegment(nbytes)


def test_a_forked_process_gets_memory_of_its_own() -> None:
    code = """
import os
from janus.transport import shared_pool
ours = shared_pool()
child = os.fork()
if child == 0:
    os._exit(shared_pool().segment.export() == ours.segment.export())
assert os.waitpid(child, 0)[1] == 0 and shared_pool() is ours
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
