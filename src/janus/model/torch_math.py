"""The attention half in plain torch: the portable path (any device and dtype), and the oracle of the CPU kernels."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from janus.model.batch import StepBatch
from janus.model.gate import TorchGates
from janus.model.kv_cache import PagedKVCache
from janus.model.torch_attention import StepPlan, apply_rope, paged_attention, write_kv
from janus.model.weights import WeightReader


class TorchMath:
    """See ``AttentionModel`` for what the methods do."""

    def __init__(self, reader: WeightReader, embedding: torch.Tensor) -> None:
        config = reader.config
        self._config = config
        self._final_norm = reader.final_norm()
        lm_head = reader.lm_head()
        self._lm_head = embedding if lm_head is None else lm_head
        self._layers = [reader.attention(layer) for layer in range(config.num_layers)]
        self._gates = TorchGates(config, {layer: reader.router(layer) for layer in config.moe_layers})
        self._dense = {layer: reader.dense_mlp(layer) for layer in config.dense_layers}

    def prepare(self, batch: StepBatch, cos_sin_TD: torch.Tensor) -> None:
        """Compute what all layers of the step share."""
        batch.prepared = StepPlan(batch, cos_sin_TD)

    def attention(
        self, layer: int, h: torch.Tensor, batch: StepBatch, kv: PagedKVCache
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Residual stream after attention, and the normed MLP input."""
        weights, config, plan = self._layers[layer], self._config, batch.prepared
        assert isinstance(plan, StepPlan), "call embed first"
        qkv = F.linear(self._norm(h, weights.input_norm), weights.qkv, weights.qkv_bias)
        head_counts = [config.num_heads, config.num_kv_heads, config.num_kv_heads]
        q, k, v = torch.split(qkv.view(len(qkv), -1, config.head_dim), head_counts, dim=1)
        if weights.q_norm is not None:
            q = self._norm(q, weights.q_norm)
        if weights.k_norm is not None:
            k = self._norm(k, weights.k_norm)
        write_kv(apply_rope(k, plan.cos_sin), v, plan, kv, layer)
        attended = paged_attention(apply_rope(q, plan.cos_sin), plan, kv, layer)
        h = h + F.linear(attended.flatten(1), weights.o, weights.o_bias)
        return h, self._norm(h, weights.post_attention_norm)

    def route(self, layer: int, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Gate weights and expert ids."""
        return self._gates.route(layer, x)

    def dense_mlp(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        """Gated MLP."""
        weights = self._dense[layer]
        gate, up = F.linear(x, weights.gate_up).chunk(2, dim=-1)
        return F.linear(F.silu(gate) * up, weights.down)

    def logits(self, h: torch.Tensor, batch: StepBatch) -> torch.Tensor:
        """f32 logits of the sampled rows."""
        rows = h.index_select(0, batch.sample_rows)
        return F.linear(self._norm(rows, self._final_norm), self._lm_head).float()

    def _norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, weight.shape, weight, self._config.rms_norm_eps)
