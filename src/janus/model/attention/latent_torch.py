"""Multi-head latent attention (MLA) in plain torch: any device, any dtype, and the oracle of the C++ kernel.

The cache holds one latent and one rotated key per token, for all heads (arXiv 2405.04434, section 2.1). A head's key is
``k_up @ latent`` beside that rotated key, and its value ``v_up @ latent``. Scores are linear in the latent, so ``k_up``
moves to the query ("absorbed"): every head attends to the latents themselves, and ``v_up`` is applied to the weighted
sum. A decode step thus reads the cache as it is and makes no per-head key. A long chunk of a prompt pays for expanding
the context once with fewer operations per pair of row and token, and does so piece by piece.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from janus.model.attention.paged import StepPlan, apply_rope, visible
from janus.model.attention.softmax import RunningSoftmax, no_sinks
from janus.model.batch import StepBatch
from janus.model.kv_cache import PagedKVCache
from janus.model.weights import LatentWeights, WeightReader

#: Of the norms inside latent attention, whatever the config says of the others: transformers' and DeepSeek's own.
LATENT_NORM_EPS = 1e-6
#: Tokens of context that are expanded, or whose scores are in memory, at once.
_PIECE = 1024


@dataclass(frozen=True, slots=True)
class _Context:
    """The latents of one sequence."""

    batch: StepBatch
    sequence: int
    cache: torch.Tensor

    @property
    def length(self) -> int:
        """Tokens."""
        return int(self.batch.context_len_np[self.sequence])

    def pieces(self) -> Iterator[tuple[range, torch.Tensor]]:
        """Positions and latents [P, rank + rope], in order."""
        block_size = self.cache.shape[1]
        step = max(1, _PIECE // block_size) * block_size
        for start in range(0, self.length, step):
            tokens = range(start, min(self.length, start + step))
            blocks = self.batch.block_tables[self.sequence, start // block_size : -(-tokens.stop // block_size)]
            yield tokens, self.cache[blocks].flatten(0, 1)[: len(tokens)]


class TorchLatentAttention:
    """See ``AttentionLayers``."""

    def __init__(self, reader: WeightReader) -> None:
        config = reader.config
        assert config.latent is not None
        self._shape = config.latent
        self._heads = config.num_heads
        self._eps = config.rms_norm_eps
        self._scale = config.attention_scale
        self._layers = [reader.latent_attention(layer) for layer in range(config.num_layers)]

    def prepare(self, batch: StepBatch, cos_sin_TR: torch.Tensor) -> None:
        """See ``AttentionLayers.prepare``."""
        batch.prepared = StepPlan(batch, cos_sin_TR)

    def attention(
        self, layer: int, h: torch.Tensor, batch: StepBatch, kv: PagedKVCache
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``AttentionLayers.attention``."""
        weights, plan = self._layers[layer], batch.prepared
        assert isinstance(plan, StepPlan), "call embed first"
        q_nope, q_pe = self._project(_norm(h, weights.input_norm, self._eps), weights, plan, kv.latents[layer])
        values = q_nope.new_empty((len(h), self._heads, self._shape.v_head_dim))
        if len(batch.decode_sequences):
            rows = plan.decode_rows
            values.index_copy_(0, rows, self._decode((q_nope[rows], q_pe[rows]), weights, plan, kv.latents[layer]))
        for sequence in batch.prefill_sequences.tolist():
            chunk = slice(int(batch.query_start_np[sequence]), int(batch.query_start_np[sequence + 1]))
            queries = q_nope[chunk], q_pe[chunk]
            values[chunk] = self._prefill(queries, weights, _Context(batch, sequence, kv.latents[layer]))
        h = h + F.linear(values.flatten(1), weights.o, weights.o_bias)
        return h, _norm(h, weights.post_attention_norm, self._eps)

    def _project(
        self, x: torch.Tensor, weights: LatentWeights, plan: StepPlan, cache: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the rows' latents; returns the queries [T, N, nope] and, rotated, [T, N, rope]."""
        shape = self._shape
        projected = F.linear(x, weights.a, weights.a_bias)
        first = projected.shape[1] - shape.width
        q, latent, k_pe = torch.split(projected, [first, shape.kv_lora_rank, shape.qk_rope_head_dim], dim=1)
        if weights.q_b is not None:
            assert weights.q_a_norm is not None
            q = F.linear(_norm(q, weights.q_a_norm, LATENT_NORM_EPS), weights.q_b)
        q_nope, q_pe = torch.split(
            q.view(len(q), self._heads, -1), [shape.qk_nope_head_dim, shape.qk_rope_head_dim], dim=2
        )
        blocks, offsets = plan.slots(cache.shape[1])
        latent = _norm(latent, weights.kv_a_norm, LATENT_NORM_EPS)
        cache[blocks, offsets] = torch.cat((latent, apply_rope(k_pe[:, None], plan.cos_sin)[:, 0]), dim=1)
        return q_nope, apply_rope(q_pe, plan.cos_sin)

    def _decode(
        self,
        queries: tuple[torch.Tensor, torch.Tensor],
        weights: LatentWeights,
        plan: StepPlan,
        cache: torch.Tensor,
    ) -> torch.Tensor:
        """One row per sequence, over contexts padded to the longest: [S, N, nope and rope] to [S, N, v]."""
        q_nope, q_pe = queries
        context = plan.decode_context(cache.shape[1], None)
        latents = cache[context.blocks].flatten(1, 2)  # [S, slots, rank + rope]
        absorbed = torch.bmm(q_nope.transpose(0, 1), weights.k_up).transpose(0, 1)
        scores = torch.bmm(torch.cat((absorbed, q_pe), dim=2), latents.transpose(1, 2)).float() * self._scale
        seen = torch.softmax(scores.masked_fill_(~context.mask[:, None], -torch.inf), dim=-1).to(latents.dtype)
        attended = torch.bmm(seen, latents[..., : self._shape.kv_lora_rank])
        return torch.bmm(attended.transpose(0, 1), weights.v_up.transpose(1, 2)).transpose(0, 1)

    def _prefill(
        self, queries: tuple[torch.Tensor, torch.Tensor], weights: LatentWeights, context: _Context
    ) -> torch.Tensor:
        """One sequence's chunk over its whole context so far, piece by piece: [T, N, nope and rope] to [T, N, v]."""
        q_nope, q_pe = (part.transpose(0, 1) for part in queries)
        rows, shape = q_pe.shape[1], self._shape
        expand = self._expands(rows)
        if not expand:
            q_nope = torch.bmm(q_nope, weights.k_up)
        width = shape.v_head_dim if expand else shape.kv_lora_rank
        total = RunningSoftmax(no_sinks(self._heads, rows, device=q_pe.device), width)
        for tokens, piece in context.pieces():
            latents, k_pe = torch.split(piece, [shape.kv_lora_rank, shape.qk_rope_head_dim], dim=1)
            keys = torch.matmul(latents, weights.k_up.transpose(1, 2)) if expand else latents
            values = torch.matmul(latents, weights.v_up.transpose(1, 2)) if expand else latents
            scores = (q_nope @ keys.transpose(-2, -1) + q_pe @ k_pe.T).float() * self._scale
            mask = visible(range(context.length - rows, context.length), tokens, None, q_pe.device)
            total.add(scores.masked_fill_(~mask, -torch.inf), values)
        attended = total.result().to(q_pe.dtype)
        if not expand:
            attended = torch.bmm(attended, weights.v_up.transpose(1, 2))
        return attended.transpose(0, 1)

    def _expands(self, rows: int) -> bool:
        """Whether ``rows`` rows of a sequence cost less over expanded keys and values than over latents.

        Per head and token of context, in multiply-adds: expanding costs rank * (nope + v) once, and saves each row
        (rank - nope) for its score and (rank - v) for its sum.
        """
        shape = self._shape
        saved = 2 * shape.kv_lora_rank - shape.qk_nope_head_dim - shape.v_head_dim
        return rows * saved > shape.kv_lora_rank * (shape.qk_nope_head_dim + shape.v_head_dim)


def _norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return F.rms_norm(x, weight.shape, weight, eps)
