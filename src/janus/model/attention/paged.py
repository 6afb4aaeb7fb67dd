"""Paged grouped-query attention in plain torch: any device, any dtype, and the oracle of the C++ kernels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F

from janus.model.attention.softmax import RunningSoftmax, softmax_with_sinks
from janus.model.batch import StepBatch
from janus.model.kv_cache import PagedKVCache

#: Tokens of context whose scores are in memory at once, where a prompt's rows do not go through torch's fused kernel.
_PIECE = 1024


def apply_rope(x_TND: torch.Tensor, cos_sin_TR: torch.Tensor) -> torch.Tensor:
    """Rotate the two halves of the first R elements of each head (the "neox" pairing); the others stay as they are.

    Computed in f32, returned in the dtype of ``x``.
    """
    rotary = cos_sin_TR.shape[-1]
    cos, sin = cos_sin_TR[:, None].chunk(2, dim=-1)
    first, second = x_TND[..., :rotary].float().chunk(2, dim=-1)
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x_TND.dtype)
    return turned if rotary == x_TND.shape[-1] else torch.cat((turned, x_TND[..., rotary:]), dim=-1)


@dataclass(frozen=True, slots=True)
class DecodeContext:
    """What the single-row sequences see: int64 [S', B'] blocks, and bool [S', B' * block_size], which slots of them."""

    blocks: torch.Tensor
    mask: torch.Tensor


class StepPlan:
    """What all layers of one step share: rotary factors, and where the context of the single-row sequences lies."""

    def __init__(self, batch: StepBatch, cos_sin_TR: torch.Tensor) -> None:
        self.batch = batch
        self.cos_sin = cos_sin_TR
        self._slots: tuple[torch.Tensor, torch.Tensor] | None = None
        self._contexts: dict[int | None, DecodeContext] = {}

    def slots(self, block_size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """int64 [T] each: block, and offset in it, that every row writes."""
        if self._slots is None:
            mapping = self.batch.slot_mapping
            self._slots = (mapping // block_size, mapping % block_size)
        return self._slots

    @cached_property
    def decode_rows(self) -> torch.Tensor:
        """int64 [S']: the row of each sequence that has one."""
        starts = self.batch.query_start_np[self.batch.decode_sequences].astype(np.int64)
        return torch.from_numpy(starts).to(self.batch.device)

    def decode_context(self, block_size: int, window: int | None) -> DecodeContext:
        """What they see through ``window`` (None: everything); of the blocks, those that can be seen at all."""
        found = self._contexts.get(window)
        if found is None:
            found = self._contexts[window] = self._decode_context(block_size, window)
        return found

    def _decode_context(self, block_size: int, window: int | None) -> DecodeContext:
        batch, sequences = self.batch, self.batch.decode_sequences
        context = torch.from_numpy(batch.context_len_np[sequences].astype(np.int64)).to(batch.device)[:, None]
        tables = batch.block_tables.index_select(0, torch.from_numpy(sequences).to(batch.device))
        width = -(-int(batch.context_len_np[sequences].max()) // block_size)
        if window is None or width * block_size <= window:
            slots = torch.arange(width * block_size, device=batch.device)[None]
            mask = slots < context
            if window is not None:
                mask &= slots >= context - window
            return DecodeContext(tables[:, :width], mask)
        first = (context - window).clamp(min=0) // block_size
        width = min(width, (window + block_size - 2) // block_size + 1)
        # Past the end of a table lies nothing that is seen, whatever is read there.
        columns = (first + torch.arange(width, device=batch.device)).clamp(max=tables.shape[1] - 1)
        slots = first * block_size + torch.arange(width * block_size, device=batch.device)
        return DecodeContext(tables.gather(1, columns), (slots < context) & (slots >= context - window))


def write_kv(k_TGD: torch.Tensor, v_TGD: torch.Tensor, plan: StepPlan, kv: PagedKVCache, layer: int) -> None:
    """Store the rows' keys and values in their slots."""
    blocks, offsets = plan.slots(kv.block_size)
    kv.keys[layer][blocks, :, offsets] = k_TGD
    kv.values[layer][blocks, :, offsets] = v_TGD


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer's part of the cache, and what its rows see of it."""

    #: [num_blocks, num_kv_heads, block_size, D] each.
    keys: torch.Tensor
    values: torch.Tensor
    #: How many tokens a row sees, its own included; None is all.
    window: int | None
    #: f32 [num_heads], logits that take part in the softmax and carry no value.
    sinks: torch.Tensor | None

    @property
    def groups(self) -> int:
        """Key heads."""
        return self.keys.shape[1]

    @property
    def block_size(self) -> int:
        """Slots of a block."""
        return self.keys.shape[2]


def paged_attention(q_TND: torch.Tensor, plan: StepPlan, layer: Layer) -> torch.Tensor:
    """Causal attention of every row over its own sequence's context, [T, num_heads, D] in and out.

    ``q_TND`` are rotated queries; the rows' keys and values have been written into ``layer``.
    """
    batch, out = plan.batch, torch.empty_like(q_TND)
    if len(batch.decode_sequences):
        out.index_copy_(0, plan.decode_rows, _decode(q_TND.index_select(0, plan.decode_rows), plan, layer))
    prefill = _prefill if layer.sinks is None else _prefill_with_sinks
    for sequence in batch.prefill_sequences.tolist():
        rows = slice(int(batch.query_start_np[sequence]), int(batch.query_start_np[sequence + 1]))
        out[rows] = prefill(q_TND[rows], batch, sequence, layer)
    return out


def visible(rows: range, tokens: range, window: int | None, device: torch.device) -> torch.Tensor:
    """bool [rows, tokens]: which of the tokens at the positions ``tokens`` each of the rows at ``rows`` sees."""
    row = torch.arange(rows.start, rows.stop, device=device)[:, None]
    token = torch.arange(tokens.start, tokens.stop, device=device)[None]
    return token <= row if window is None else (token <= row) & (token > row - window)


def _decode(q_SND: torch.Tensor, plan: StepPlan, layer: Layer) -> torch.Tensor:
    """One row per sequence, over contexts padded to the longest."""
    count, heads, size = q_SND.shape
    context = plan.decode_context(layer.block_size, layer.window)
    mask = context.mask[:, None, None]
    # Query heads that share a key head become query rows of it, so that no key is repeated in memory.
    q = q_SND.view(count, layer.groups, -1, size)
    k, v = (part[context.blocks].transpose(1, 2).flatten(2, 3) for part in (layer.keys, layer.values))
    if layer.sinks is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).reshape(count, heads, size)
    scores = (q @ k.transpose(2, 3)).float() * size**-0.5
    weights = softmax_with_sinks(scores.masked_fill(~mask, -torch.inf), layer.sinks.view(layer.groups, -1, 1))
    return (weights.to(v.dtype) @ v).reshape(count, heads, size)


def _prefill(q_TND: torch.Tensor, batch: StepBatch, sequence: int, layer: Layer) -> torch.Tensor:
    """Attention of one sequence's chunk over what it sees of its context so far."""
    blocks, rows, seen = _context(len(q_TND), batch, sequence, layer)
    q = q_TND.transpose(0, 1)[None]
    k, v = (part[blocks].transpose(0, 1).flatten(1, 2)[None, :, : len(seen)] for part in (layer.keys, layer.values))
    if rows == seen and (layer.window is None or layer.window >= len(seen)):
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    else:
        mask = visible(rows, seen, layer.window, q.device)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    return attended[0].transpose(0, 1)


def _prefill_with_sinks(q_TND: torch.Tensor, batch: StepBatch, sequence: int, layer: Layer) -> torch.Tensor:
    """As ``_prefill``, piece by piece of the context: torch's fused kernel knows no sinks."""
    count, heads, size = q_TND.shape
    groups = layer.groups
    blocks, rows, seen = _context(count, batch, sequence, layer)
    # [G, N / G * T, D]: rows of the same key head go together.
    q = q_TND.transpose(0, 1).reshape(groups, -1, size)
    assert layer.sinks is not None
    sinks = layer.sinks.view(groups, -1, 1).expand(-1, -1, count).reshape(groups, -1, 1)
    total = RunningSoftmax(sinks, size)
    step = max(1, _PIECE // layer.block_size)
    for index in range(0, len(blocks), step):
        piece = blocks[index : index + step]
        tokens = seen[index * layer.block_size : (index + step) * layer.block_size]
        k, v = (part[piece].transpose(0, 1).flatten(1, 2)[:, : len(tokens)] for part in (layer.keys, layer.values))
        scores = (q @ k.transpose(1, 2)).float() * size**-0.5
        mask = visible(rows, tokens, layer.window, q.device)
        scores = scores.view(groups, -1, count, len(tokens)).masked_fill(~mask, -torch.inf).view(scores.shape)
        total.add(scores, v)
    return total.result().to(q.dtype).view(heads, count, size).transpose(0, 1)


def _context(rows: int, batch: StepBatch, sequence: int, layer: Layer) -> tuple[torch.Tensor, range, range]:
    """Of a sequence's last ``rows`` tokens: the blocks that they see, their positions, and those of the slots."""
    context = int(batch.context_len_np[sequence])
    earliest = 0 if layer.window is None else max(0, context - rows - layer.window + 1)
    first = earliest // layer.block_size
    blocks = batch.block_tables[sequence, first : -(-context // layer.block_size)]
    return blocks, range(context - rows, context), range(first * layer.block_size, context)
