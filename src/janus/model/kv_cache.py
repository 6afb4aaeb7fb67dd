"""``PagedKVCache``: keys and values in fixed blocks, addressed by slot = block * block_size + offset."""

from __future__ import annotations

import math

import torch

from janus.model.config import ModelConfig
from janus.model.memory import huge_bytes


class PagedKVCache:
    """Per layer one key and one value tensor, [num_blocks, num_kv_heads, block_size, head_dim].

    Which sequence owns which block is the batcher's business; this class only holds the memory.
    """

    def __init__(
        self,
        config: ModelConfig,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (2, config.num_layers, num_blocks, config.num_kv_heads, block_size, config.head_dim)
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.dtype = dtype
        self.device = torch.device(device)
        # Zero, not uninitialised: slots past a context are masked by a weight of 0, and 0 * NaN would be NaN.
        if self.device.type == "cpu":
            self._memory = huge_bytes(math.prod(shape) * dtype.itemsize).view(dtype).view(shape)
        else:
            self._memory = torch.zeros(shape, dtype=dtype, device=device)
        keys, values = self._memory
        self.keys = list(keys.unbind(0))
        self.values = list(values.unbind(0))

    @staticmethod
    def bytes_per_block(config: ModelConfig, block_size: int, dtype: torch.dtype) -> int:
        """Bytes that one block takes over all layers, keys and values."""
        return 2 * config.num_layers * block_size * config.num_kv_heads * config.head_dim * dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of the whole cache."""
        return self._memory.nbytes
