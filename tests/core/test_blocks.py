"""The block allocator against a plain model of it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus.core.blocks import BlockAllocator


def test_blocks_come_in_order_and_go_back() -> None:
    blocks = BlockAllocator(4, 16)
    assert blocks.allocate(3) == (0, 1, 2)
    assert blocks.allocate(2) is None
    assert (blocks.num_free, blocks.num_used) == (1, 3)
    blocks.free((0, 1, 2))
    assert blocks.allocate(3) == (0, 1, 2)


@pytest.mark.parametrize(("tokens", "expected"), [(0, 0), (1, 1), (16, 1), (17, 2)])
def test_blocks_for(tokens: int, expected: int) -> None:
    assert BlockAllocator(4, 16).blocks_for(tokens) == expected


def test_a_shared_block_is_free_when_its_last_holder_lets_go() -> None:
    blocks = BlockAllocator(2, 1)
    held = blocks.allocate(1)
    assert held is not None
    blocks.retain(held)
    blocks.free(held)
    assert (blocks.reference_count(held[0]), blocks.num_used) == (1, 1)
    blocks.free(held)
    assert blocks.num_used == 0


def test_misuse_is_an_error_and_changes_nothing() -> None:
    blocks = BlockAllocator(3, 1)
    held = blocks.allocate(2)
    assert held is not None
    with pytest.raises(RuntimeError, match="block 2 is freed more often"):
        blocks.free((*held, 2))
    with pytest.raises(RuntimeError, match="more often"):
        blocks.free((held[0], held[0]))
    assert blocks.num_used == 2
    with pytest.raises(RuntimeError, match="cannot be retained"):
        blocks.retain([2])
    with pytest.raises(ValueError, match="-1"):
        blocks.allocate(-1)
    with pytest.raises(ValueError, match="at least 1"):
        BlockAllocator(0, 1)
    blocks.check()


@settings(max_examples=100, deadline=None)
@given(size=st.integers(1, 8), steps=st.lists(st.tuples(st.sampled_from("arf"), st.integers(0, 9)), max_size=40))
def test_no_block_is_lost_or_given_twice(size: int, steps: list[tuple[str, int]]) -> None:
    blocks = BlockAllocator(size, 4)
    holders: list[tuple[int, ...]] = []
    for kind, number in steps:
        if kind == "a":
            free = size - len({b for held in holders for b in held})
            got = blocks.allocate(number)
            assert (got is None) == (number > free)
            if got is not None:
                assert len(set(got)) == number
                assert not {b for held in holders for b in held} & set(got)
                holders.append(got)
        elif holders and kind == "r":
            blocks.retain(holders[number % len(holders)])
            holders.append(holders[number % len(holders)])
        elif holders:
            blocks.free(holders.pop(number % len(holders)))
        blocks.check()
        for block in range(size):
            assert blocks.reference_count(block) == sum(held.count(block) for held in holders)
