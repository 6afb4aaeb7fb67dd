"""Buffers: aligned, big enough, recycled within bounds."""

from __future__ import annotations

import itertools
import threading

from hypothesis import given
from hypothesis import strategies as st

from janus.transport.buffers import BufferPool


@given(st.lists(st.integers(1, 3 << 20), max_size=8))
def test_buffers_are_aligned_large_enough_and_distinct(sizes: list[int]) -> None:
    pool = BufferPool(keep_bytes=1 << 20)
    buffers = [pool.take(size) for size in sizes]
    for buffer, size in zip(buffers, sizes, strict=True):
        assert len(buffer.array) >= size and len(buffer.view) == len(buffer.array)
        assert buffer.array.ctypes.data % 64 == 0
    spans = sorted((b.array.ctypes.data, b.array.ctypes.data + len(b.array)) for b in buffers)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
    for buffer in buffers:
        buffer.release()
        buffer.release()
    assert pool.kept_bytes <= 1 << 20


def test_a_released_buffer_is_used_again_once() -> None:
    pool = BufferPool()
    first = pool.take(5000)
    address = first.array.ctypes.data
    first.release()
    first.release()
    second, third = pool.take(6000), pool.take(6000)
    assert second.array.ctypes.data == address != third.array.ctypes.data


def test_threads_never_share_a_buffer() -> None:
    pool = BufferPool()
    clashes: list[int] = []

    def work(mark: int) -> None:
        for _ in range(2000):
            buffer = pool.take(64)
            buffer.array[:64] = mark
            if (buffer.array[:64] != mark).any():
                clashes.append(mark)
            buffer.release()

    threads = [threading.Thread(target=work, args=(mark,)) for mark in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert clashes == []


def test_what_a_wire_made_of_the_memory_comes_back_with_it() -> None:
    pool = BufferPool()
    first = pool.take(5000)
    assert first.wrapped is None
    first.wrapped = "made once"
    first.release()
    again = pool.take(5000)
    assert (again.address, again.view.obj is first.array, again.wrapped) == (first.address, True, "made once")
    assert pool.take(5000).wrapped is None, "other memory"
