"""What attention kernels are given, a step and weights in their forms, and how they are called."""

from __future__ import annotations

import ctypes
from abc import ABC, abstractmethod
from ctypes import byref
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from janus.model.batch import StepBatch
from janus.model.kernels.library import AttentionStep, Library
from janus.model.kv_cache import PagedKVCache
from janus.model.memory import Arena
from janus.model.weights import WeightReader


@dataclass(frozen=True, slots=True)
class CpuStep:
    """A step as the kernels see it, and what keeps its memory alive."""

    raw: AttentionStep
    alive: tuple[torch.Tensor | npt.NDArray[np.generic], ...]

    @classmethod
    def of(cls, batch: StepBatch, cos_sin_TR: torch.Tensor) -> CpuStep:
        """Describe ``batch`` to the kernels."""
        raw = AttentionStep(
            tokens=batch.num_tokens,
            sequences=batch.num_sequences,
            max_blocks=batch.block_tables_np.shape[1] if batch.block_tables_np.ndim > 1 else 0,
            cos_sin=cos_sin_TR.data_ptr(),
            slot_mapping=batch.slot_mapping_np.ctypes.data,
            query_start=batch.query_start_np.ctypes.data,
            context_len=batch.context_len_np.ctypes.data,
            block_tables=batch.block_tables_np.ctypes.data,
        )
        return cls(raw, (cos_sin_TR,))


class CpuWeights:
    """Weights in the kernels' forms, and their memory."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._arena = Arena()
        self._alive: list[torch.Tensor] = []

    def packed(self, weight: torch.Tensor) -> int:
        """Address of ``weight`` [N, K] in panels."""
        return self._keep(self._library.pack(weight, self._arena))

    def packed_stack(self, weights: torch.Tensor) -> int:
        """Address of ``weights`` [G, N, K] in panels, one after the other."""
        return self._keep(self._library.pack_stack(weights, self._arena))

    def f32(self, tensor: torch.Tensor) -> int:
        """Address of a contiguous copy in f32."""
        return self._keep(tensor.float().contiguous())

    def _keep(self, tensor: torch.Tensor) -> int:
        self._alive.append(tensor)
        return tensor.data_ptr()


class CpuAttention(ABC):
    """``AttentionLayers`` of one kind, by a kernel that computes a layer in one call, in bf16 or f32."""

    #: Name of the kernel in ``Library``.
    kernel: ClassVar[str]

    def __init__(self, library: Library, reader: WeightReader) -> None:
        self._kernel = getattr(library, self.kernel)
        self._dtype = reader.dtype
        self._hidden = reader.config.hidden_size
        self._weights = CpuWeights(library)
        self._shape: Any = self._shape_of(reader)

    @abstractmethod
    def _shape_of(self, reader: WeightReader) -> ctypes.Structure:
        """Return what the kernel needs to know of the model; ``block_size`` is filled in with each call."""

    @abstractmethod
    def _layer(self, layer: int, kv: PagedKVCache) -> ctypes.Structure:
        """Return the weights of ``layer``, and where its part of ``kv`` is."""

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
        self._shape.block_size = kv.block_size
        self._kernel(
            byref(self._shape),
            byref(self._layer(layer, kv)),
            byref(step.raw),
            h.data_ptr(),
            h_out.data_ptr(),
            x_out.data_ptr(),
        )
        return h_out, x_out
