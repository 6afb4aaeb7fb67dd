"""Multi-head latent attention on the CPU kernels: one call per layer, in bf16 or f32, always absorbed.

A long chunk of a prompt would need fewer operations over expanded keys, but then a row's bits would depend on how its
prompt was cut.
"""

from __future__ import annotations

import torch

from janus.model.attention.cpu_step import CpuAttention
from janus.model.attention.latent_torch import LATENT_NORM_EPS
from janus.model.kernels.library import DTYPES, LatentLayer, LatentShape, Library
from janus.model.kv_cache import PagedKVCache
from janus.model.weights import LatentWeights, WeightReader


class CpuLatentAttention(CpuAttention):
    """See ``AttentionLayers``."""

    kernel = "latent_attention"

    def __init__(self, library: Library, reader: WeightReader) -> None:
        super().__init__(library, reader)
        self._layers = [self._read(reader.latent_attention(layer)) for layer in range(reader.config.num_layers)]

    @staticmethod
    def supports(reader: WeightReader) -> bool:
        """Whether the kernels can run it: bf16 is multiplied in pairs along rows, so row lengths must be even."""
        shape, heads = reader.config.latent, reader.config.num_heads
        assert shape is not None
        rows = (shape.q_lora_rank or 0, shape.kv_lora_rank, shape.qk_nope_head_dim, heads * shape.v_head_dim)
        return reader.dtype == torch.float32 or all(row % 2 == 0 for row in rows)

    def _shape_of(self, reader: WeightReader) -> LatentShape:
        config, shape = reader.config, reader.config.latent
        assert shape is not None
        return LatentShape(
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

    def _layer(self, layer: int, kv: PagedKVCache) -> LatentLayer:
        weights = self._layers[layer]
        weights.latents = kv.latents[layer].data_ptr()
        return weights

    def _read(self, weights: LatentWeights) -> LatentLayer:
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
