"""Rotary position embedding: frequencies for the scaling types in use, and a table of cos and sin per position."""

from __future__ import annotations

import math

import torch

from janus.model.rope_parameters import RopeParameters


def inverse_frequencies(rope: RopeParameters, rotary_dim: int) -> tuple[torch.Tensor, float]:
    """Return (inverse frequencies f32 [rotary_dim / 2], factor on cos and sin).

    yarn follows "YaRN: Efficient Context Window Extension of Large Language Models" (arXiv 2309.00071), with the
    choices of the transformers implementation, which checkpoints are published against.
    """
    import torch

    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float32) / rotary_dim
    base = rope.theta**exponents
    if rope.type == "default":
        return 1.0 / base, 1.0
    if rope.type == "linear":
        return 1.0 / base / rope.factor, 1.0
    low, high = _yarn_range(rope, rotary_dim)
    ramp = ((torch.arange(rotary_dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    inverse = (1.0 / (rope.factor * base)) * ramp + (1.0 / base) * (1 - ramp)
    return inverse, _yarn_attention_factor(rope)


def _yarn_range(rope: RopeParameters, rotary_dim: int) -> tuple[float, float]:
    def dimension(rotations: float) -> float:
        wavelength = rope.original_max_position / (rotations * 2 * math.pi)
        return rotary_dim * math.log(wavelength) / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotary_dim - 1)
    return low, high + 0.001 if low == high else high


def _yarn_attention_factor(rope: RopeParameters) -> float:
    if rope.attention_factor is not None:
        return float(rope.attention_factor)
    if rope.mscale and rope.mscale_all_dim:
        return rope.yarn_mscale(rope.mscale) / rope.yarn_mscale(rope.mscale_all_dim)
    return rope.yarn_mscale(1.0)


class RopeTable:
    """cos and sin for positions 0..n, f32, grown by doubling as positions are asked for."""

    def __init__(self, rope: RopeParameters, rotary_dim: int, max_positions: int, device: torch.device) -> None:
        self._inverse, self._factor = inverse_frequencies(rope, rotary_dim)
        self._max_positions = max_positions
        self._device = device
        self._cos_sin = self._build(min(4096, max_positions))

    def rows(self, positions: torch.Tensor, highest: int) -> torch.Tensor:
        """Return cos then sin of ``positions`` [T] as f32 [T, rotary_dim]; ``highest`` is their maximum."""
        if highest >= len(self._cos_sin):
            self._cos_sin = self._build(max(highest + 1, min(2 * len(self._cos_sin), self._max_positions)))
        return self._cos_sin.index_select(0, positions)

    def _build(self, count: int) -> torch.Tensor:
        import torch

        angles = torch.arange(count, dtype=torch.float32)[:, None] * self._inverse
        return torch.cat((angles.cos() * self._factor, angles.sin() * self._factor), dim=-1).to(self._device)
