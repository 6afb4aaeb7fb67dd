"""``PagedKVCache``: what attention keeps of tokens, in fixed blocks; a slot is block * block_size + offset."""

from __future__ import annotations

import math

import torch

from janus.model.config import ModelConfig
from janus.model.memory import huge_bytes


class PagedKVCache:
    """One memory for all layers, in the layout that ``config.kv_layout`` says.

    Grouped-query attention has ``keys`` and ``values``, by layer [num_blocks, num_kv_heads, block_size, head_dim];
    latent attention has ``latents``, by layer [num_blocks, block_size, kv_lora_rank + qk_rope_head_dim]. What a model
    does not have is an empty list. Which sequence owns which block is the batcher's business; a block is the same slots
    of every layer, so layers that see a window of the context alone keep what has left it.
    """

    def __init__(
        self,
        config: ModelConfig,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        layout = config.kv_layout
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.dtype = dtype
        self.device = torch.device(device)
        shapes = [(layout.num_layers, num_blocks, heads, block_size, width) for heads, width in layout.parts]
        sizes = [math.prod(shape) for shape in shapes]
        # Zero, not uninitialised: slots past a context are masked by a weight of 0, and 0 * NaN would be NaN.
        if self.device.type == "cpu":
            self._memory = huge_bytes(sum(sizes) * dtype.itemsize).view(dtype)
        else:
            self._memory = torch.zeros(sum(sizes), dtype=dtype, device=device)
        parts = [part.view(shape) for part, shape in zip(torch.split(self._memory, sizes), shapes, strict=True)]
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []
        self.latents: list[torch.Tensor] = []
        if config.latent is None:
            self.keys, self.values = (list(part.unbind(0)) for part in parts)
        else:
            self.latents = list(parts[0].squeeze(2).unbind(0))

    @staticmethod
    def bytes_per_token(config: ModelConfig, dtype: torch.dtype) -> int:
        """Bytes that one token takes over all layers."""
        return config.kv_layout.bytes_per_token(dtype.itemsize)

    @staticmethod
    def bytes_per_block(config: ModelConfig, block_size: int, dtype: torch.dtype) -> int:
        """Bytes that one block takes over all layers."""
        return block_size * PagedKVCache.bytes_per_token(config, dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole cache."""
        return self._memory.nbytes
