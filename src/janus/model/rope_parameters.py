"""How positions become angles, as a checkpoint's config says it. Free of torch, so that a gateway can read configs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from janus.errors import CheckpointError

SUPPORTED_ROPE_TYPES = ("default", "linear", "yarn")
#: Spelled alike in ``RopeParameters`` and in configs.
_YARN_KEYS = ("attention_factor", "beta_fast", "beta_slow", "truncate", "mscale", "mscale_all_dim")


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
    #: Which part of a head turns with the position, from its first element on.
    partial_rotary_factor: float = 1.0

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
        partial = scaling.get("partial_rotary_factor") or raw.get("partial_rotary_factor") or 1.0
        if not isinstance(partial, int | float) or not 0 < partial <= 1:
            raise CheckpointError(where, f"partial_rotary_factor is {partial!r}, expected a part of 1")
        if rope_type == "default":
            return cls(theta=theta, partial_rotary_factor=float(partial))
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
            partial_rotary_factor=float(partial),
        )

    @property
    def score_scale(self) -> float:
        """What latent attention multiplies its scores by in addition: DeepSeek's mscale, squared."""
        if self.type == "default" or not self.mscale_all_dim:
            return 1.0
        return self.yarn_mscale(self.mscale_all_dim) ** 2

    def yarn_mscale(self, multiplier: float) -> float:
        """How much larger scores become as contexts do (arXiv 2309.00071, section 3.4), with DeepSeek's multiplier."""
        return 1.0 if self.factor <= 1 else 0.1 * multiplier * math.log(self.factor) + 1.0

    def to_json(self) -> dict[str, Any]:
        """Return the ``rope_parameters`` object of a transformers 5 config."""
        written: dict[str, Any] = {"rope_type": self.type, "rope_theta": self.theta}
        if self.type != "default":
            written["factor"] = self.factor
        if self.type == "yarn":
            written["original_max_position_embeddings"] = self.original_max_position
        defaults = {item.name: item.default for item in fields(self)}
        for name in (*_YARN_KEYS, "partial_rotary_factor"):
            if getattr(self, name) != defaults[name]:
                written[name] = getattr(self, name)
        return written
