"""Grouped-query attention on the CPU kernels: one call per layer, in bf16 or f32."""

from __future__ import annotations

from janus.model.attention.cpu_step import CpuAttention
from janus.model.kernels.library import DTYPES, AttentionLayer, AttentionShape, Library
from janus.model.kv_cache import PagedKVCache
from janus.model.weights import WeightReader


class CpuGroupedAttention(CpuAttention):
    """See ``AttentionLayers``."""

    kernel = "attention"

    def __init__(self, library: Library, reader: WeightReader) -> None:
        super().__init__(library, reader)
        self._layers = [self._read(reader, layer) for layer in range(reader.config.num_layers)]

    def _shape_of(self, reader: WeightReader) -> AttentionShape:
        config, q_norm = reader.config, reader.attention_spec(0).q_norm
        return AttentionShape(
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

    def _layer(self, layer: int, kv: PagedKVCache) -> AttentionLayer:
        weights = self._layers[layer]
        weights.keys, weights.values = kv.keys[layer].data_ptr(), kv.values[layer].data_ptr()
        return weights

    def _read(self, reader: WeightReader, layer: int) -> AttentionLayer:
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
