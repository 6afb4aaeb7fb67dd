"""Paged attention in plain torch: the portable path (any device, any dtype) and the oracle of the C++ kernels."""

from __future__ import annotations

from functools import cached_property

import torch
import torch.nn.functional as F

from janus.model.batch import StepBatch
from janus.model.kv_cache import PagedKVCache


def apply_rope(x_TND: torch.Tensor, cos_sin_TD: torch.Tensor) -> torch.Tensor:
    """Rotate the two halves of each head (the "neox" pairing). Computed in f32, returned in the dtype of ``x``."""
    cos, sin = cos_sin_TD[:, None].chunk(2, dim=-1)
    first, second = x_TND.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x_TND.dtype)


def write_kv(k_TGD: torch.Tensor, v_TGD: torch.Tensor, batch: StepBatch, kv: PagedKVCache, layer: int) -> None:
    """Store the rows' keys and values in their slots."""
    kv.keys[layer].flatten(0, 1).index_copy_(0, batch.slot_mapping, k_TGD)
    kv.values[layer].flatten(0, 1).index_copy_(0, batch.slot_mapping, v_TGD)


class DecodePlan:
    """Where the keys of all single-row sequences lie, computed once per step and used by every layer."""

    def __init__(self, batch: StepBatch, block_size: int) -> None:
        self._batch = batch
        sequences = batch.decode_sequences
        self.longest = int(batch.context_len_np[sequences].max(initial=0))
        self._num_blocks = -(-self.longest // block_size)
        self._sequences = torch.from_numpy(sequences).to(batch.device)

    @cached_property
    def rows(self) -> torch.Tensor:
        """int64 [S']: the row of each decoding sequence."""
        starts = self._batch.query_start_np[self._batch.decode_sequences].astype("int64")
        return torch.from_numpy(starts).to(self._batch.device)

    @cached_property
    def blocks(self) -> torch.Tensor:
        """int64 [S', B']: block tables cut to the longest context."""
        return self._batch.block_tables.index_select(0, self._sequences)[:, : self._num_blocks].contiguous()

    def mask(self, block_size: int) -> torch.Tensor:
        """bool [S', 1, 1, B' * block_size]: which slots belong to the context."""
        context = torch.from_numpy(self._batch.context_len_np).to(self._batch.device).index_select(0, self._sequences)
        slots = torch.arange(self._num_blocks * block_size, device=self._batch.device)
        return (slots[None] < context[:, None])[:, None, None]


def paged_attention(q_TND: torch.Tensor, batch: StepBatch, kv: PagedKVCache, layer: int) -> torch.Tensor:
    """Causal attention of every row over its own sequence's context, [T, num_heads, D] in and out."""
    out = torch.empty_like(q_TND)
    if len(batch.decode_sequences):
        _decode(q_TND, out, batch, kv, layer)
    for sequence in batch.prefill_sequences:
        rows = slice(int(batch.query_start_np[sequence]), int(batch.query_start_np[sequence + 1]))
        out[rows] = _prefill(q_TND[rows], batch, kv, layer, int(sequence))
    return out


def _decode(q_TND: torch.Tensor, out: torch.Tensor, batch: StepBatch, kv: PagedKVCache, layer: int) -> None:
    plan = DecodePlan(batch, kv.block_size)
    count, heads, size = len(plan.rows), q_TND.shape[1], q_TND.shape[2]
    groups = kv.keys[layer].shape[2]
    # Query heads that share a key head become query rows of it, so that no key is repeated in memory.
    q = q_TND.index_select(0, plan.rows).view(count, groups, heads // groups, size)
    k = kv.keys[layer][plan.blocks].view(count, -1, groups, size).transpose(1, 2)
    v = kv.values[layer][plan.blocks].view(count, -1, groups, size).transpose(1, 2)
    attended = F.scaled_dot_product_attention(q, k, v, attn_mask=plan.mask(kv.block_size))
    out.index_copy_(0, plan.rows, attended.reshape(count, heads, size))


def _prefill(q_TND: torch.Tensor, batch: StepBatch, kv: PagedKVCache, layer: int, sequence: int) -> torch.Tensor:
    """Attention of one sequence's chunk over its whole context so far."""
    context, rows = int(batch.context_len_np[sequence]), len(q_TND)
    blocks = batch.block_tables[sequence, : -(-context // kv.block_size)]
    q = q_TND.transpose(0, 1)[None]
    k = kv.keys[layer][blocks].flatten(0, 1)[:context].transpose(0, 1)[None]
    v = kv.values[layer][blocks].flatten(0, 1)[:context].transpose(0, 1)[None]
    if context == rows:
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    else:
        position = torch.arange(context - rows, context, device=q.device)
        mask = torch.arange(context, device=q.device)[None] <= position[:, None]
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    return attended[0].transpose(0, 1)
