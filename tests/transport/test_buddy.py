"""The buddy allocator: blocks never overlap, are aligned, and become one whole again."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from janus.transport.buddy import BuddySpace

TOP = 12


@given(st.lists(st.tuples(st.booleans(), st.integers(0, TOP)), max_size=150))
def test_blocks_are_aligned_distinct_and_merge_again(events: list[tuple[bool, int]]) -> None:
    space = BuddySpace(TOP)
    held: dict[int, int] = {}
    for take, number in events:
        if take:
            offset = space.take(number)
            if offset is None:
                # Only when nothing of that size can be left: the free bytes are split up, or too few.
                spans = sorted((start, start + (1 << log2)) for start, log2 in held.items())
                assert not any(
                    all(end <= start or start + (1 << number) <= begin for begin, end in spans)
                    for start in range(0, 1 << TOP, 1 << number)
                )
                continue
            assert offset % (1 << number) == 0 and offset not in held
            held[offset] = number
        elif held:
            offset = sorted(held)[number % len(held)]
            space.give(offset, held.pop(offset))
        spans = sorted((start, start + (1 << log2)) for start, log2 in held.items())
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
        assert all(end <= 1 << TOP for _, end in spans)
        assert space.free_bytes == (1 << TOP) - sum(end - start for start, end in spans)
    for offset, log2 in held.items():
        space.give(offset, log2)
    assert space.take(TOP) == 0
