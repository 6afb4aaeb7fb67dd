"""The KV cache's block allocator: which of ``num_blocks`` equal blocks are in use, and by how many holders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence


class BlockAllocator:
    """Hands out block ids ``0 .. num_blocks - 1``; O(1) per block, bounded, deterministic.

    A block has a reference count: ``allocate`` gives it one holder, ``retain`` adds one (two requests that share a
    prefix hold the same block), ``free`` takes one away, and the last ``free`` returns the block. The most recently
    freed block is handed out first, while its memory is warm.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"num_blocks ({num_blocks}) and block_size ({block_size}) must be at least 1")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._free = list(range(num_blocks - 1, -1, -1))
        self._references = [0] * num_blocks

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

    @property
    def num_used(self) -> int:
        """Blocks with at least one holder."""
        return self.num_blocks - len(self._free)

    def blocks_for(self, num_tokens: int) -> int:
        """Return how many blocks hold the keys and values of ``num_tokens`` tokens."""
        return -(-num_tokens // self.block_size)

    def reference_count(self, block: int) -> int:
        """Return how many holders ``block`` has; 0 when it is free."""
        return self._references[block]

    def allocate(self, count: int) -> tuple[int, ...] | None:
        """Return ``count`` blocks with one holder each, or ``None``, and nothing taken, when fewer are free."""
        if count < 0:
            raise ValueError(f"cannot allocate {count} blocks")
        if count > len(self._free):
            return None
        blocks = tuple(self._free.pop() for _ in range(count))
        for block in blocks:
            self._references[block] = 1
        return blocks

    def retain(self, blocks: Iterable[int]) -> None:
        """Add one holder to each of ``blocks``.

        Raises:
            RuntimeError: a block is free; the blocks before it have been retained.
        """
        for block in blocks:
            if self._references[block] == 0:
                raise RuntimeError(f"block {block} is free and cannot be retained")
            self._references[block] += 1

    def free(self, blocks: Sequence[int]) -> None:
        """Take one holder from each of ``blocks``; a block without holders can be allocated again.

        Raises:
            RuntimeError: a block would be freed more often than it was held; nothing has been freed.
        """
        for block, times in Counter(blocks).items():
            if self._references[block] < times:
                raise RuntimeError(f"block {block} is freed more often than it was allocated")
        # In reverse, so that the next request gets the blocks in the order in which this one had them.
        for block in reversed(blocks):
            self._references[block] -= 1
            if self._references[block] == 0:
                self._free.append(block)

    def check(self) -> None:
        """Raise ``AssertionError`` unless every block is either free once or held. O(num_blocks), for tests."""
        free = set(self._free)
        if len(free) != len(self._free):
            raise AssertionError("a block is in the free list twice")
        for block, references in enumerate(self._references):
            if (references == 0) != (block in free) or references < 0:
                raise AssertionError(f"block {block} has {references} holders, free: {block in free}")
