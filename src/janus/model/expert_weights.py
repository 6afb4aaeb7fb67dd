"""The weights of one expert, and how they come out of tensors that hold all experts of a layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from janus.model.families.base import FusedExpertsSpec, TensorSpec
from janus.model.mxfp4 import dequantise

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class ExpertWeights:
    """gate_up [2 * I, H] (gate rows, then up rows), down [H, I], and where there are some, the biases of both."""

    gate_up: torch.Tensor
    down: torch.Tensor
    gate_up_bias: torch.Tensor | None = None
    down_bias: torch.Tensor | None = None

    def tensors(self) -> list[torch.Tensor]:
        """Those that there are, in the order of the fields."""
        return [tensor for item in fields(self) if (tensor := getattr(self, item.name)) is not None]


def read_fused(spec: FusedExpertsSpec, read: Callable[[TensorSpec], torch.Tensor], dtype: torch.dtype) -> ExpertWeights:
    """Return one expert in ``dtype``, contiguous; ``read`` returns its slice of a stored tensor."""

    def product(stored: TensorSpec, scales: TensorSpec | None) -> torch.Tensor:
        if scales is not None:
            return dequantise(read(stored), read(scales), dtype)
        return read(stored).T if spec.transposed else read(stored)

    def bias(stored: TensorSpec | None) -> torch.Tensor | None:
        return None if stored is None else read(stored)

    def gate_first(rows: torch.Tensor | None) -> torch.Tensor | None:
        import torch

        return torch.cat((rows[0::2], rows[1::2])) if rows is not None and spec.interleaved else rows

    parts = (
        gate_first(product(spec.gate_up, spec.gate_up_scales)),
        product(spec.down, spec.down_scales),
        gate_first(bias(spec.gate_up_bias)),
        bias(spec.down_bias),
    )
    gate_up, down, *biases = (None if part is None else part.to(dtype).contiguous() for part in parts)
    assert gate_up is not None and down is not None
    return ExpertWeights(gate_up, down, *biases)
