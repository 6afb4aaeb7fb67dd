"""What attention kernels are given: a step, and weights in their forms."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from janus.model.batch import StepBatch
from janus.model.kernels.library import AttentionStep, Library
from janus.model.memory import Arena


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
