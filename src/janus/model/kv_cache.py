"""``PagedKVCache``: keys and values in fixed blocks, addressed by slot = block * block_size + offset."""

from __future__ import annotations

import torch

from janus.model.config import ModelConfig


class PagedKVCache:
    """Per layer one key and one value tensor, [num_blocks, block_size, num_kv_heads, head_dim].

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
        shape = (config.num_layers, num_blocks, block_size, config.num_kv_heads, config.head_dim)
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.dtype = dtype
        self.device = torch.device(device)
        # Zeros, not empty: masked-out slots are multiplied by zero, and 0 * NaN of stale memory would be NaN. On Linux
        # zero pages of an untouched block cost no memory.
        self._keys = torch.zeros(shape, dtype=dtype, device=device)
        self._values = torch.zeros(shape, dtype=dtype, device=device)
        self.keys = list(self._keys.unbind(0))
        self.values = list(self._values.unbind(0))

    @staticmethod
    def bytes_per_block(config: ModelConfig, block_size: int, dtype: torch.dtype) -> int:
        """Bytes that one block takes over all layers, keys and values."""
        return 2 * config.num_layers * block_size * config.num_kv_heads * config.head_dim * dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of the whole cache."""
        return self._keys.nbytes + self._values.nbytes
