"""Grouped-query attention in plain torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from janus.model.attention.paged import Layer, StepPlan, apply_rope, paged_attention, write_kv
from janus.model.batch import StepBatch
from janus.model.kv_cache import PagedKVCache
from janus.model.weights import WeightReader


class TorchGroupedAttention:
    """See ``AttentionLayers``."""

    def __init__(self, reader: WeightReader) -> None:
        config = reader.config
        self._config = config
        self._layers = [reader.attention(layer) for layer in range(config.num_layers)]
        self._sinks = [None if weights.sinks is None else weights.sinks.float() for weights in self._layers]

    def prepare(self, batch: StepBatch, cos_sin_TR: torch.Tensor) -> None:
        """See ``AttentionLayers.prepare``."""
        batch.prepared = StepPlan(batch, cos_sin_TR)

    def attention(
        self, layer: int, h: torch.Tensor, batch: StepBatch, kv: PagedKVCache
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``AttentionLayers.attention``."""
        weights, config, plan = self._layers[layer], self._config, batch.prepared
        assert isinstance(plan, StepPlan), "call embed first"
        qkv = F.linear(self._norm(h, weights.input_norm), weights.qkv, weights.qkv_bias)
        q_width, kv_width = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        q, k, v = torch.split(qkv, [q_width, kv_width, kv_width], dim=1)
        q, k = self._head_norm(q, weights.q_norm), self._head_norm(k, weights.k_norm)
        if config.qkv_clip is not None:
            q, k, v = (part.clamp(-config.qkv_clip, config.qkv_clip) for part in (q, k, v))
        q, k, v = (part.view(len(part), -1, config.head_dim) for part in (q, k, v))
        write_kv(apply_rope(k, plan.cos_sin), v, plan, kv, layer)
        part = Layer(kv.keys[layer], kv.values[layer], config.sliding_window(layer), self._sinks[layer])
        attended = paged_attention(apply_rope(q, plan.cos_sin), plan, part)
        h = h + F.linear(attended.flatten(1), weights.o, weights.o_bias)
        return h, self._norm(h, weights.post_attention_norm)

    def _norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, weight.shape, weight, self._config.rms_norm_eps)

    def _head_norm(self, x: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
        """Norm of each head where ``weight`` is as wide as one, of all heads together where it is as wide as they."""
        if weight is None:
            return x
        return self._norm(x.reshape(len(x), -1, len(weight)), weight).flatten(1)
