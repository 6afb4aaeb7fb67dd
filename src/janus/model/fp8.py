"""FP8 weights with a scale per block, as DeepSeek-V3 is published in: what they stand for.

A matrix ``W`` [N, K] is stored as ``name`` in float8 e4m3 and ``name + "_scale_inv"`` f32 [ceil(N / R), ceil(K / C)]:
block (r, c), of R rows and C columns, stands for its elements times that scale (arXiv 2412.19437, section 3.3.2; "inv"
since quantising multiplied by its inverse).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

#: Name of the dtype in safetensors headers, and its largest number.
FP8_DTYPE = "F8_E4M3"
_LARGEST = 448.0


def scale_name(name: str) -> str:
    """Return the name of the scales of tensor ``name``."""
    return f"{name}_scale_inv"


def scale_shape(shape: tuple[int, ...], block: tuple[int, int]) -> tuple[int, ...]:
    """Return the shape of the scales of a matrix, or of a stack of them, of ``shape``."""
    *stack, rows, columns = shape
    return (*stack, -(-rows // block[0]), -(-columns // block[1]))


def quantise(weights: torch.Tensor, block: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a matrix [N, K] as float8, and its scales: every block's largest element is FP8's largest number."""
    import torch
    import torch.nn.functional as F

    rows, columns = weights.shape
    band, width = block
    padded = F.pad(weights.float(), (0, -columns % width, 0, -rows % band))
    blocks = padded.view(-1, band, padded.shape[1] // width, width)
    scales = blocks.abs().amax(dim=(1, 3)).clamp(min=1e-30) / _LARGEST
    quantised = (blocks / scales[:, None, :, None]).view(padded.shape)[:rows, :columns]
    return quantised.contiguous().to(torch.float8_e4m3fn), scales


def dequantise(weights: torch.Tensor, scales: torch.Tensor, block: tuple[int, int]) -> torch.Tensor:
    """Return [..., N, K] in f32 for ``weights`` in float8 and their ``scales``."""
    rows, columns = weights.shape[-2:]
    # A band of blocks at a time: the scales are never spread over the whole matrix.
    result = weights.float()
    wide = scales.float().repeat_interleave(block[1], dim=-1)[..., :columns]
    for band in range(scales.shape[-2]):
        result[..., band * block[0] : min(rows, (band + 1) * block[0]), :] *= wide[..., band, None, :]
    return result
