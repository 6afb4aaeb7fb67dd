"""The attention half on the CPU kernels: one call per layer and half, in bf16 or f32."""

from __future__ import annotations

from ctypes import byref
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from janus.model.batch import StepBatch
from janus.model.gate import CpuGates
from janus.model.kernels.library import DTYPES, AttentionLayer, AttentionShape, AttentionStep, Library
from janus.model.kv_cache import PagedKVCache
from janus.model.memory import Arena
from janus.model.weights import AttentionWeights, DenseMlpWeights, WeightReader


@dataclass(frozen=True, slots=True)
class _Step:
    """A step as the kernels see it, and what keeps its memory alive."""

    raw: AttentionStep
    alive: tuple[torch.Tensor | npt.NDArray[np.generic], ...]


class CpuMath:
    """See ``AttentionModel`` for what the methods do."""

    def __init__(self, library: Library, reader: WeightReader, embedding: torch.Tensor) -> None:
        config = reader.config
        self._library = library
        self._config = config
        self._dtype = DTYPES[reader.dtype]
        self._torch_dtype = reader.dtype
        self._arena = Arena()
        self._alive: list[torch.Tensor] = []
        self._final_norm = self._f32(reader.final_norm())
        lm_head = reader.lm_head()
        self._lm_head = self._packed(embedding if lm_head is None else lm_head)
        self._layers = [self._attention(reader.attention(layer)) for layer in range(config.num_layers)]
        routers = {layer: reader.router(layer) for layer in config.moe_layers}
        self._gates = CpuGates(library, config, reader.dtype, routers, self._arena)
        self._dense = {layer: self._dense_mlp(reader.dense_mlp(layer)) for layer in config.dense_layers}
        self._shape = AttentionShape(
            dtype=self._dtype,
            hidden=config.hidden_size,
            heads=config.num_heads,
            kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            eps=config.rms_norm_eps,
        )

    def prepare(self, batch: StepBatch, cos_sin_TD: torch.Tensor) -> None:
        """Compute what all layers of the step share."""
        raw = AttentionStep(
            tokens=batch.num_tokens,
            sequences=batch.num_sequences,
            max_blocks=batch.block_tables_np.shape[1] if batch.block_tables_np.ndim > 1 else 0,
            cos_sin=cos_sin_TD.data_ptr(),
            slot_mapping=batch.slot_mapping_np.ctypes.data,
            query_start=batch.query_start_np.ctypes.data,
            context_len=batch.context_len_np.ctypes.data,
            block_tables=batch.block_tables_np.ctypes.data,
        )
        batch.prepared = _Step(raw, (cos_sin_TD,))

    def attention(
        self, layer: int, h: torch.Tensor, batch: StepBatch, kv: PagedKVCache
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Residual stream after attention, and the normed MLP input."""
        step = batch.prepared
        assert isinstance(step, _Step), "call embed first"
        if kv.dtype != self._torch_dtype:
            raise ValueError(f"the KV cache is {kv.dtype}, expected {self._torch_dtype}")
        h = self._input(h)
        h_out, x_out = torch.empty_like(h), torch.empty_like(h)
        weights = self._layers[layer]
        weights.keys, weights.values = kv.keys[layer].data_ptr(), kv.values[layer].data_ptr()
        self._shape.block_size = kv.block_size
        self._library.attention(
            byref(self._shape), byref(weights), byref(step.raw), h.data_ptr(), h_out.data_ptr(), x_out.data_ptr()
        )
        return h_out, x_out

    def route(self, layer: int, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Gate weights and expert ids."""
        return self._gates.route(layer, x)

    def dense_mlp(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        """Gated MLP."""
        config, x = self._config, self._input(x)
        out = torch.empty_like(x)
        self._library.dense_mlp(
            self._dtype,
            len(x),
            config.hidden_size,
            config.intermediate_size,
            x.data_ptr(),
            self._dense[layer],
            out.data_ptr(),
        )
        return out

    def logits(self, h: torch.Tensor, batch: StepBatch) -> torch.Tensor:
        """f32 logits of the sampled rows."""
        config, h = self._config, self._input(h)
        rows = batch.sample_rows_np
        out = torch.empty((len(rows), config.vocab_size), dtype=torch.float32)
        self._library.head(
            self._dtype,
            len(rows),
            config.hidden_size,
            config.vocab_size,
            config.rms_norm_eps,
            h.data_ptr(),
            rows.ctypes.data,
            self._final_norm,
            self._lm_head,
            out.data_ptr(),
        )
        return out

    def _input(self, x: torch.Tensor) -> torch.Tensor:
        if x.dtype != self._torch_dtype or x.shape[-1] != self._config.hidden_size:
            raise ValueError(f"activations are {x.dtype} {list(x.shape)}, expected {self._torch_dtype} [T, hidden]")
        return x.contiguous()

    def _keep(self, tensor: torch.Tensor) -> int:
        self._alive.append(tensor)
        return tensor.data_ptr()

    def _packed(self, weight: torch.Tensor) -> int:
        return self._keep(self._library.pack(weight, self._arena))

    def _f32(self, tensor: torch.Tensor) -> int:
        return self._keep(tensor.float().contiguous())

    def _attention(self, weights: AttentionWeights) -> AttentionLayer:
        optional = {
            name: self._f32(tensor)
            for name in ("qkv_bias", "q_norm", "k_norm", "o_bias")
            if (tensor := getattr(weights, name)) is not None
        }
        return AttentionLayer(
            input_norm=self._f32(weights.input_norm),
            post_norm=self._f32(weights.post_attention_norm),
            qkv=self._packed(weights.qkv),
            o=self._packed(weights.o),
            **optional,
        )

    def _dense_mlp(self, weights: DenseMlpWeights) -> int:
        hidden, width = self._config.hidden_size, self._config.intermediate_size
        packed = self._arena.take(self._library.expert_bytes(self._dtype, hidden, width))
        self._library.pack_expert(
            self._dtype, hidden, width, weights.gate_up.data_ptr(), weights.down.data_ptr(), packed.data_ptr()
        )
        return self._keep(packed)
