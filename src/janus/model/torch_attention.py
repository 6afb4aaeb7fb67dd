"""Paged attention in plain torch: the portable path (any device, any dtype) and the oracle of the C++ kernels."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F

from janus.model.batch import StepBatch
from janus.model.kv_cache import PagedKVCache


def apply_rope(x_TND: torch.Tensor, cos_sin_TD: torch.Tensor) -> torch.Tensor:
    """Rotate the two halves of each head (the "neox" pairing). Computed in f32, returned in the dtype of ``x``."""
    cos, sin = cos_sin_TD[:, None].chunk(2, dim=-1)
    first, second = x_TND.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x_TND.dtype)


class StepPlan:
    """What all layers of one step share: rotary factors, and where the keys of the single-row sequences lie."""

    def __init__(self, batch: StepBatch, cos_sin_TD: torch.Tensor) -> None:
        self.batch = batch
        self.cos_sin = cos_sin_TD
        self._slots: tuple[torch.Tensor, torch.Tensor] | None = None

    def slots(self, block_size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """int64 [T] each: block, and offset in it, that every row writes."""
        if self._slots is None:
            mapping = self.batch.slot_mapping
            self._slots = (mapping // block_size, mapping % block_size)
        return self._slots

    @cached_property
    def _sequences(self) -> torch.Tensor:
        return torch.from_numpy(self.batch.decode_sequences).to(self.batch.device)

    @cached_property
    def decode_rows(self) -> torch.Tensor:
        """int64 [S']: the row of each sequence that has one."""
        starts = self.batch.query_start_np[self.batch.decode_sequences].astype(np.int64)
        return torch.from_numpy(starts).to(self.batch.device)

    @cached_property
    def decode_blocks(self) -> torch.Tensor:
        """int64 [S', B]: their block tables."""
        return self.batch.block_tables.index_select(0, self._sequences)

    def decode_mask(self, slots: int) -> torch.Tensor:
        """bool [S', 1, 1, slots]: which of the gathered slots belong to the context."""
        context = torch.from_numpy(self.batch.context_len_np).to(self.batch.device).index_select(0, self._sequences)
        return (torch.arange(slots, device=self.batch.device)[None] < context[:, None])[:, None, None]


def write_kv(k_TGD: torch.Tensor, v_TGD: torch.Tensor, plan: StepPlan, kv: PagedKVCache, layer: int) -> None:
    """Store the rows' keys and values in their slots."""
    blocks, offsets = plan.slots(kv.block_size)
    kv.keys[layer][blocks, :, offsets] = k_TGD
    kv.values[layer][blocks, :, offsets] = v_TGD


def paged_attention(q_TND: torch.Tensor, plan: StepPlan, kv: PagedKVCache, layer: int) -> torch.Tensor:
    """Causal attention of every row over its own sequence's context, [T, num_heads, D] in and out."""
    batch, out = plan.batch, torch.empty_like(q_TND)
    if len(batch.decode_sequences):
        attended = _decode(q_TND.index_select(0, plan.decode_rows), plan, kv, layer)
        out.index_copy_(0, plan.decode_rows, attended)
    for sequence in batch.prefill_sequences:
        rows = slice(int(batch.query_start_np[sequence]), int(batch.query_start_np[sequence + 1]))
        out[rows] = _prefill(q_TND[rows], batch, kv, layer, int(sequence))
    return out


def _decode(q_SND: torch.Tensor, plan: StepPlan, kv: PagedKVCache, layer: int) -> torch.Tensor:
    """One row per sequence, over contexts padded to the longest."""
    count, heads, size = q_SND.shape
    groups = kv.keys[layer].shape[1]
    # Query heads that share a key head become query rows of it, so that no key is repeated in memory.
    q = q_SND.view(count, groups, heads // groups, size)
    k, v = (part[plan.decode_blocks].transpose(1, 2).flatten(2, 3) for part in (kv.keys[layer], kv.values[layer]))
    attended = F.scaled_dot_product_attention(q, k, v, attn_mask=plan.decode_mask(k.shape[2]))
    return attended.reshape(count, heads, size)


def _prefill(q_TND: torch.Tensor, batch: StepBatch, kv: PagedKVCache, layer: int, sequence: int) -> torch.Tensor:
    """Attention of one sequence's chunk over its whole context so far."""
    context, rows = int(batch.context_len_np[sequence]), len(q_TND)
    blocks = batch.block_tables[sequence, : -(-context // kv.block_size)]
    q = q_TND.transpose(0, 1)[None]
    k, v = (
        part[blocks].transpose(0, 1).flatten(1, 2)[None, :, :context] for part in (kv.keys[layer], kv.values[layer])
    )
    if context == rows:
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    else:
        position = torch.arange(context - rows, context, device=q.device)
        mask = torch.arange(context, device=q.device)[None] <= position[:, None]
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    return attended[0].transpose(0, 1)
