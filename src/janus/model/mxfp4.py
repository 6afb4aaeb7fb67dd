"""MXFP4 weights, as gpt-oss is published in: what they stand for.

A matrix [N, K] is stored as codes uint8 [N, K / 32, 16], two elements of four bits in each byte (the lower half first),
and scales uint8 [N, K / 32], one for every 32 elements: each stands for its value times 2 to the power of scale - 127
(OCP Microscaling Formats 1.0, section 5.3: elements E2M1, scales E8M0).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

#: Elements that share a scale.
BLOCK = 32

#: The scale that stands for a factor of 1.
SCALE_BIAS = 127

#: What the codes without the sign bit stand for: two bits of exponent, one of mantissa.
_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def codes_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of the codes of a matrix, or of a stack of them, of ``shape``."""
    *rows, columns = shape
    return (*rows, columns // BLOCK, BLOCK // 2)


def scales_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of its scales."""
    *rows, columns = shape
    return (*rows, columns // BLOCK)


def dequantise(codes: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return [N, K] in ``dtype`` (bf16 holds every value) for codes [N, K / 32, 16] and scales [N, K / 32]."""
    import torch

    values = torch.tensor((*_VALUES, *(-value for value in _VALUES)))
    elements = torch.stack((codes & 0xF, codes >> 4), dim=-1).flatten(-2)
    exponents = scales.int() - SCALE_BIAS
    return torch.ldexp(values[elements.int()], exponents[..., None]).flatten(-2).to(dtype)
