"""Grouped-query attention on the CPU kernels: one call per layer, in bf16 or f32."""

from __future__ import annotations

from ctypes import byref

import torch

from janus.model.attention.cpu_step import CpuStep, CpuWeights
from janus.model.batch import StepBatch
from janus.model.kernels.library import DTYPES, AttentionLayer, AttentionShape, Library
from janus.model.kv_cache import PagedKVCache
from janus.model.weights import WeightReader


class CpuGroupedAttention:
    """See ``AttentionLayers``."""

    def __init__(self, library: Library, reader: WeightReader) -> None:
        config = reader.config
        self._library = library
        self._dtype = reader.dtype
        self._hidden = config.hidden_size
        self._weights = CpuWeights(library)
        self._layers = [self._layer(reader, layer) for layer in range(config.num_layers)]
        q_norm = reader.attention_spec(0).q_norm
        self._shape = AttentionShape(
            dtype=DTYPES[reader.dtype],
            hidden=config.hidden_size,
            heads=config.num_heads,
            kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            rotary=config.rotary_dim,
            whole_norm=q_norm is not None and q_norm.shape != (config.head_dim,),
            eps=config.rms_norm_eps,
            clip=config.qkv_clip or 0.0,
        )

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
        weights.keys, weights.values = kv.keys[layer].data_ptr(), kv.values[layer].data_ptr()
        self._shape.block_size = kv.block_size
        self._library.attention(
            byref(self._shape), byref(weights), byref(step.raw), h.data_ptr(), h_out.data_ptr(), x_out.data_ptr()
        )
        return h_out, x_out

    def _layer(self, reader: WeightReader, layer: int) -> AttentionLayer:
        weights = reader.attention(layer)
        optional = {
            name: self._weights.f32(tensor)
            for name in ("qkv_bias", "q_norm", "k_norm", "o_bias", "sinks")
            if (tensor := getattr(weights, name)) is not None
        }
        return AttentionLayer(
            input_norm=self._weights.f32(weights.input_norm),
            post_norm=self._weights.f32(weights.post_attention_norm),
            qkv=self._weights.packed(weights.qkv),
            o=self._weights.packed(weights.o),
            window=reader.config.sliding_window(layer) or 0,
            **optional,
        )
