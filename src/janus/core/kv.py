"""Who holds which blocks of the KV cache: rows of the block table, handed to running requests."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from janus.core.blocks import BlockAllocator
from janus.core.request import Request


class KvTable:
    """The block table of one attention instance: a row per running request, and the allocator behind it."""

    def __init__(self, *, max_running: int, num_blocks: int, block_size: int, max_model_len: int) -> None:
        self.block_size = block_size
        self.num_blocks = num_blocks
        self._allocator = BlockAllocator(num_blocks, block_size)
        width = min(self._allocator.blocks_for(max_model_len), num_blocks)
        #: int32[max_running, width]: blocks of each row's request, in order; what follows them is stale.
        self.tables: npt.NDArray[np.int32] = np.zeros((max_running, width), dtype=np.int32)
        self._free_rows = list(range(max_running - 1, -1, -1))

    @property
    def num_used(self) -> int:
        """Blocks in use."""
        return self._allocator.num_used

    @property
    def num_free(self) -> int:
        """Blocks that nobody has."""
        return self._allocator.num_free

    def would_admit(self, request: Request, *, spare: int) -> bool:
        """Return whether there are a row and blocks for all tokens of ``request``, and ``spare`` more blocks."""
        needed = self._allocator.blocks_for(len(request.tokens))
        return bool(self._free_rows) and needed + spare <= self._allocator.num_free

    def admit(self, request: Request, *, spare: int) -> bool:
        """Give ``request`` a row and the blocks of all its tokens, if ``spare`` more blocks would still be free."""
        if not self.would_admit(request, spare=spare):
            return False
        request.row = self._free_rows.pop()
        self._give(request, self._allocator.allocate(self._allocator.blocks_for(len(request.tokens))) or ())
        return True

    def grow(self, request: Request) -> bool:
        """Give ``request`` one more block, if one is free."""
        block = self._allocator.allocate(1)
        if block is None:
            return False
        self._give(request, block)
        return True

    def release(self, request: Request) -> None:
        """Take row and blocks back from ``request``."""
        self._allocator.free(request.blocks)
        self._free_rows.append(request.row)
        request.blocks = ()
        request.capacity = 0
        request.row = -1

    def _give(self, request: Request, blocks: tuple[int, ...]) -> None:
        held = len(request.blocks)
        self.tables[request.row, held : held + len(blocks)] = blocks
        request.blocks += blocks
        request.capacity = len(request.blocks) * self.block_size

    def check(self, holders: Iterable[Request]) -> None:
        """Raise ``AssertionError`` unless ``holders`` hold exactly the rows and blocks that are taken. For tests."""
        self._allocator.check()
        holders = tuple(holders)
        held = [block for request in holders for block in request.blocks]
        if not len(held) == len(set(held)) == self._allocator.num_used:
            raise AssertionError(f"{self._allocator.num_used} blocks are taken, their holders have {sorted(held)}")
        if sorted([*(request.row for request in holders), *self._free_rows]) != list(range(len(self.tables))):
            raise AssertionError("a row of the block table is lost, or has two owners")
        for request in holders:
            if tuple(self.tables[request.row, : len(request.blocks)].tolist()) != request.blocks:
                raise AssertionError(f"{request.request_id}: its row of the table is not its list of blocks")
            if request.computed > request.capacity:
                raise AssertionError(f"{request.request_id}: {request.computed} tokens in {len(request.blocks)} blocks")
