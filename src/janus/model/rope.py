"""Rotary position embedding: frequencies for the scaling types in use, and a table of cos and sin per position."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from janus.errors import CheckpointError

if TYPE_CHECKING:
    import torch  # imported where it is used: ``ModelConfig`` needs the parameters alone, and the gateway no torch

SUPPORTED_ROPE_TYPES = ("default", "linear", "yarn")


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeParameters:
    """How positions become angles. ``factor`` and what follows matter for the scaled types alone."""

    theta: float
    type: str = "default"
    factor: float = 1.0
    original_max_position: int = 0
    #: yarn: multiplier of cos and sin; computed from ``factor`` where the checkpoint gives none.
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    mscale: float | None = None
    mscale_all_dim: float | None = None

    @classmethod
    def parse(cls, raw: Mapping[str, Any], where: str) -> RopeParameters:
        """Read the spelling of transformers 5 (``rope_parameters``) or 4 (``rope_theta`` + ``rope_scaling``).

        Raises:
            CheckpointError: an unsupported ``rope_type``, or a scaled type without its factor.
        """
        scaling = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
        if not isinstance(scaling, Mapping):
            raise CheckpointError(where, f"rope_parameters is not an object: {scaling!r}")
        theta = float(scaling.get("rope_theta") or raw.get("rope_theta") or 10_000.0)
        rope_type = str(scaling.get("rope_type") or scaling.get("type") or "default")
        if rope_type not in SUPPORTED_ROPE_TYPES:
            raise CheckpointError(
                where, f"rope_type {rope_type!r} is not supported", f"supported: {', '.join(SUPPORTED_ROPE_TYPES)}"
            )
        if rope_type == "default":
            return cls(theta=theta)
        if not scaling.get("factor"):
            raise CheckpointError(where, f"rope_type {rope_type!r} needs a factor")
        original = scaling.get("original_max_position_embeddings") or raw.get("max_position_embeddings") or 0
        return cls(
            theta=theta,
            type=rope_type,
            factor=float(scaling["factor"]),
            original_max_position=int(original),
            attention_factor=scaling.get("attention_factor"),
            beta_fast=float(scaling.get("beta_fast") or 32.0),
            beta_slow=float(scaling.get("beta_slow") or 1.0),
            truncate=bool(scaling.get("truncate", True)),
            mscale=scaling.get("mscale"),
            mscale_all_dim=scaling.get("mscale_all_dim"),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the ``rope_parameters`` object of a transformers 5 config."""
        if self.type == "default":
            return {"rope_type": "default", "rope_theta": self.theta}
        scaled = {"rope_type": self.type, "rope_theta": self.theta, "factor": self.factor}
        if self.type == "yarn":
            scaled["original_max_position_embeddings"] = self.original_max_position
        return scaled


def inverse_frequencies(rope: RopeParameters, head_dim: int) -> tuple[torch.Tensor, float]:
    """Return (inverse frequencies f32 [head_dim / 2], factor on cos and sin).

    yarn follows "YaRN: Efficient Context Window Extension of Large Language Models" (arXiv 2309.00071), with the
    choices of the transformers implementation, which checkpoints are published against.
    """
    import torch

    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    base = rope.theta**exponents
    if rope.type == "default":
        return 1.0 / base, 1.0
    if rope.type == "linear":
        return 1.0 / base / rope.factor, 1.0
    low, high = _yarn_range(rope, head_dim)
    ramp = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    inverse = (1.0 / (rope.factor * base)) * ramp + (1.0 / base) * (1 - ramp)
    return inverse, _yarn_attention_factor(rope)


def _yarn_range(rope: RopeParameters, head_dim: int) -> tuple[float, float]:
    def dimension(rotations: float) -> float:
        wavelength = rope.original_max_position / (rotations * 2 * math.pi)
        return head_dim * math.log(wavelength) / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    return low, high + 0.001 if low == high else high


def _yarn_attention_factor(rope: RopeParameters) -> float:
    if rope.attention_factor is not None:
        return float(rope.attention_factor)

    def mscale(multiplier: float) -> float:
        return 1.0 if rope.factor <= 1 else 0.1 * multiplier * math.log(rope.factor) + 1.0

    if rope.mscale and rope.mscale_all_dim:
        return mscale(rope.mscale) / mscale(rope.mscale_all_dim)
    return mscale(1.0)


class RopeTable:
    """cos and sin for positions 0..n, f32, grown by doubling as positions are asked for."""

    def __init__(self, rope: RopeParameters, head_dim: int, max_positions: int, device: torch.device) -> None:
        self._inverse, self._factor = inverse_frequencies(rope, head_dim)
        self._max_positions = max_positions
        self._device = device
        self._cos_sin = self._build(min(4096, max_positions))

    def rows(self, positions: torch.Tensor, highest: int) -> torch.Tensor:
        """Return cos then sin of ``positions`` [T] as f32 [T, head_dim]; ``highest`` is their maximum."""
        if highest >= len(self._cos_sin):
            self._cos_sin = self._build(max(highest + 1, min(2 * len(self._cos_sin), self._max_positions)))
        return self._cos_sin.index_select(0, positions)

    def _build(self, count: int) -> torch.Tensor:
        import torch

        angles = torch.arange(count, dtype=torch.float32)[:, None] * self._inverse
        return torch.cat((angles.cos() * self._factor, angles.sin() * self._factor), dim=-1).to(self._device)
