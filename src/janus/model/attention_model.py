"""``AttentionModel``: everything of a model but its experts, cut at each MoE layer so that the caller can dispatch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from janus.model.batch import StepBatch
from janus.model.checkpoint import Checkpoint
from janus.model.config import ModelConfig
from janus.model.families import family_named
from janus.model.families.base import MlpSpec, TensorSpec
from janus.model.kv_cache import PagedKVCache
from janus.model.rope import RopeTable
from janus.model.torch_attention import apply_rope, paged_attention, write_kv

__all__ = ["AttentionModel", "StepBatch"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionLayer:
    """Weights of one layer's attention. ``qkv`` is [(num_heads + 2 * num_kv_heads) * D, H]."""

    input_norm: torch.Tensor
    post_attention_norm: torch.Tensor
    qkv: torch.Tensor
    qkv_bias: torch.Tensor | None
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None
    o: torch.Tensor
    o_bias: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class DenseMlp:
    """Weights of a layer without experts: gate_up [2 * I, H], down [H, I]."""

    gate_up: torch.Tensor
    down: torch.Tensor


class AttentionModel:
    """The attention half of a model. One step of all layers::

        h = model.embed(batch)
        for layer in range(config.num_layers):
            h, x = model.attention(layer, h, batch, kv)
            if layer in config.moe_index:
                weights_TK, ids_TK = model.route(layer, x)
                h = h + experts(config.moe_index[layer], x, ids_TK, weights_TK)
            else:
                h = h + model.dense_mlp(layer, x)
        logits_RV = model.logits(h, batch)

    Activations are in the serving dtype. Methods do not block on anything but the math and are not thread-safe.
    """

    def __init__(self, config: ModelConfig, dtype: torch.dtype, device: torch.device, tensors: _Reader) -> None:
        self.config = config
        self.dtype = dtype
        self.device = device
        family = family_named(config.family)
        model = family.model(config)
        self.embedding = tensors.read(model.embedding)
        self.final_norm = tensors.read(model.final_norm)
        self.lm_head = self.embedding if model.lm_head is None else tensors.read(model.lm_head)
        self.layers = [tensors.attention(layer) for layer in range(config.num_layers)]
        self.routers = {layer: tensors.read(family.router(config, layer)) for layer in config.moe_layers}
        self.dense = {layer: tensors.mlp(family.dense_mlp(config, layer)) for layer in config.dense_layers}
        self._rope = RopeTable(config.rope, config.head_dim, config.max_position_embeddings, device)

    @classmethod
    def load(
        cls,
        checkpoint: Checkpoint,
        config: ModelConfig,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "cpu",
    ) -> AttentionModel:
        """Read the attention half of ``checkpoint``; no expert tensor is touched. Raises CheckpointError."""
        return cls(config, dtype, torch.device(device), _Reader(checkpoint, config, dtype, torch.device(device)))

    def embed(self, batch: StepBatch) -> torch.Tensor:
        """Return the embeddings [T, H] and prepare ``batch`` for the layers."""
        highest = int(batch.positions_np.max(initial=0))
        batch.cos_sin = self._rope.rows(batch.positions, highest)
        return F.embedding(batch.token_ids, self.embedding)

    def attention(
        self, layer: int, h: torch.Tensor, batch: StepBatch, kv: PagedKVCache
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run norm, attention and residual of ``layer`` on the residual stream ``h`` [T, H]; writes the KV cache.

        Returns:
            The residual stream after attention, and the normed input of the MLP or experts, both [T, H].
        """
        weights, config = self.layers[layer], self.config
        assert batch.cos_sin is not None, "call embed first"
        head_counts = [config.num_heads, config.num_kv_heads, config.num_kv_heads]
        qkv = F.linear(self._norm(h, weights.input_norm), weights.qkv, weights.qkv_bias)
        q, k, v = torch.split(qkv.view(len(qkv), -1, config.head_dim), head_counts, dim=1)
        if weights.q_norm is not None:
            q = self._norm(q, weights.q_norm)
        if weights.k_norm is not None:
            k = self._norm(k, weights.k_norm)
        write_kv(apply_rope(k, batch.cos_sin), v, batch, kv, layer)
        attended = paged_attention(apply_rope(q, batch.cos_sin), batch, kv, layer)
        h = h + F.linear(attended.flatten(1), weights.o, weights.o_bias)
        return h, self._norm(h, weights.post_attention_norm)

    def route(self, layer: int, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Gate of MoE layer ``layer`` (absolute index): softmax over all experts, then the top K.

        Returns:
            weights f32 [T, K] (descending; summing to 1 with ``norm_topk_prob``) and expert ids int32 [T, K].
        """
        logits = F.linear(x, self.routers[layer])
        weights, ids = torch.topk(torch.softmax(logits, dim=-1, dtype=torch.float32), self.config.top_k, dim=-1)
        if self.config.norm_topk_prob:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        return weights, ids.to(torch.int32)

    def dense_mlp(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        """Run the MLP of a layer without experts, [T, H] in and out."""
        mlp = self.dense[layer]
        gate, up = F.linear(x, mlp.gate_up).chunk(2, dim=-1)
        return F.linear(F.silu(gate) * up, mlp.down)

    def logits(self, h: torch.Tensor, batch: StepBatch) -> torch.Tensor:
        """Return f32 logits [R, vocab] of the rows in ``batch.sample_rows``."""
        rows = h.index_select(0, batch.sample_rows)
        return F.linear(self._norm(rows, self.final_norm), self.lm_head).float()

    def _norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, weight.shape, weight, self.config.rms_norm_eps)


class _Reader:
    """Reads and merges tensors into the forms that the model computes with."""

    def __init__(self, checkpoint: Checkpoint, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> None:
        self._checkpoint = checkpoint
        self._config = config
        self._dtype = dtype
        self._device = device

    def read(self, spec: TensorSpec) -> torch.Tensor:
        return self._checkpoint.read(spec.name, self._dtype, self._device)

    def optional(self, spec: TensorSpec | None) -> torch.Tensor | None:
        return None if spec is None else self.read(spec)

    def attention(self, layer: int) -> AttentionLayer:
        spec = family_named(self._config.family).attention(self._config, layer)
        biases = (spec.q_bias, spec.k_bias, spec.v_bias)
        return AttentionLayer(
            input_norm=self.read(spec.input_norm),
            post_attention_norm=self.read(spec.post_attention_norm),
            qkv=torch.cat([self.read(part) for part in (spec.q, spec.k, spec.v)]),
            qkv_bias=torch.cat([self.read(bias) for bias in biases if bias]) if all(biases) else None,
            q_norm=self.optional(spec.q_norm),
            k_norm=self.optional(spec.k_norm),
            o=self.read(spec.o),
            o_bias=self.optional(spec.o_bias),
        )

    def mlp(self, spec: MlpSpec) -> DenseMlp:
        return DenseMlp(torch.cat((self.read(spec.gate), self.read(spec.up))), self.read(spec.down))
