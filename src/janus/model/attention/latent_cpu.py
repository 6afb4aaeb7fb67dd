"""Multi-head latent attention on the CPU kernels: one call per layer, in bf16 or f32, always absorbed.

A long chunk of a prompt would need fewer operations over expanded keys, but then a row's bits would depend on how its
prompt was cut.
"""

from __future__ import annotations

from ctypes import byref

import torch

from janus.model.attention.cpu_step import CpuStep, CpuWeights
from janus.model.attention.latent_torch import LATENT_NORM_EPS
from janus.model.batch import StepBatch
from janus.model.kernels.library import DTYPES, LatentLayer, LatentShape, Library
from janus.model.kv_cache import PagedKVCache
from janus.model.weights import LatentWeights, WeightReader


class CpuLatentAttention:
    """See ``AttentionLayers``."""

    def __init__(self, library: Library, reader: WeightReader) -> None:
        config, shape = reader.config, reader.config.latent
        assert shape is not None
        self._library = library
        self._dtype = reader.dtype
        self._hidden = config.hidden_size
        self._weights = CpuWeights(library)
        self._layers = [self._layer(reader.latent_attention(layer)) for layer in range(config.num_layers)]
        self._shape = LatentShape(
            dtype=DTYPES[reader.dtype],
            hidden=config.hidden_size,
            heads=config.num_heads,
            q_rank=shape.q_lora_rank or 0,
            rank=shape.kv_lora_rank,
            nope=shape.qk_nope_head_dim,
            rope=shape.qk_rope_head_dim,
            value=shape.v_head_dim,
            eps=config.rms_norm_eps,
            latent_eps=LATENT_NORM_EPS,
            scale=config.attention_scale,
        )

    @staticmethod
    def supports(reader: WeightReader) -> bool:
        """Whether the kernels can run it: bf16 is multiplied in pairs along rows, so row lengths must be even."""
        shape, heads = reader.config.latent, reader.config.num_heads
        assert shape is not None
        rows = (shape.q_lora_rank or 0, shape.kv_lora_rank, shape.qk_nope_head_dim, heads * shape.v_head_dim)
        return reader.dtype == torch.float32 or all(row % 2 == 0 for row in rows)

    def prepare(self, batch: StepBatch, cos_sin_TR: torch.Tensor) -> None:
        """See ``AttentionLayers.prepare``."""
        batch.prepared = CpuStep.of(batch, cos_sin_TR)

    def attention(
        self, layer: int, h: torch.Tensor, batch: StepBatch, kv: PagedKVCache
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``AttentionLayers.attention``."""
        step = batch.prepared
        assert isinstance(step, CpuStep), "call embed first"
        if kv.dtype != self._dtype:
            raise ValueError(f"the KV cache is {kv.dtype}, expected {self._dtype}")
        if h.dtype != self._dtype or h.shape[-1] != self._hidden:
            raise ValueError(f"activations are {h.dtype} {list(h.shape)}, expected {self._dtype} [T, hidden]")
        h = h.contiguous()
        h_out, x_out = torch.empty_like(h), torch.empty_like(h)
        weights = self._layers[layer]
        weights.latents = kv.latents[layer].data_ptr()
        self._shape.block_size = kv.block_size
        self._library.latent_attention(
            byref(self._shape), byref(weights), byref(step.raw), h.data_ptr(), h_out.data_ptr(), x_out.data_ptr()
        )
        return h_out, x_out

    def _layer(self, weights: LatentWeights) -> LatentLayer:
        own = self._weights
        optional = {
            name: own.f32(tensor)
            for name, tensor in (
                ("a_bias", weights.a_bias),
                ("q_norm", weights.q_a_norm),
                ("o_bias", weights.o_bias),
            )
            if tensor is not None
        }
        if weights.q_b is not None:
            optional["q_b"] = own.packed(weights.q_b)
        return LatentLayer(
            input_norm=own.f32(weights.input_norm),
            post_norm=own.f32(weights.post_attention_norm),
            a=own.packed(weights.a),
            kv_norm=own.f32(weights.kv_a_norm),
            k_up=own.packed_stack(weights.k_up.transpose(1, 2)),
            v_up=own.packed_stack(weights.v_up),
            o=own.packed(weights.o),
            **optional,
        )
