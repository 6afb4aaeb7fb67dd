"""What a kind of attention keeps in the KV cache, and the sizes of latent attention. Free of torch: configs have it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentShape:
    """Multi-head latent attention (MLA, DeepSeek-V2, arXiv 2405.04434, section 2.1). Sizes are element counts.

    A token leaves one latent of ``kv_lora_rank`` and one rotated key of ``qk_rope_head_dim`` for all heads together.
    """

    kv_lora_rank: int
    #: None where queries are projected at once.
    q_lora_rank: int | None
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    #: Whether the stored tensors have the pairs that turn together side by side: (0, 1), (2, 3), ...; else R/2 apart.
    rope_interleaved: bool = True

    @property
    def qk_head_dim(self) -> int:
        """Width of one head's query and key, as if expanded."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def width(self) -> int:
        """Elements that a token leaves in the cache of a layer."""
        return self.kv_lora_rank + self.qk_rope_head_dim


@dataclass(frozen=True, slots=True, kw_only=True)
class KVLayout:
    """What the cache holds: per layer one tensor [blocks, heads, block_size, width] for each of ``parts``."""

    num_layers: int
    #: Heads and width of each tensor of a layer.
    parts: tuple[tuple[int, int], ...]

    @property
    def elements_per_token(self) -> int:
        """Elements that one token takes in one layer."""
        return sum(heads * width for heads, width in self.parts)

    def bytes_per_token(self, itemsize: int) -> int:
        """Bytes that one token takes over all layers, at ``itemsize`` bytes per element."""
        return self.num_layers * self.elements_per_token * itemsize
