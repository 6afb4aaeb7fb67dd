"""The placement policies, by the names that ``--placement`` takes."""

from __future__ import annotations

from janus.core.placing.contract import PlacingPolicy
from janus.core.placing.policies.activation_aware import activation_aware
from janus.core.placing.policies.eplb import eplb
from janus.core.placing.policies.static import static

POLICIES: dict[str, PlacingPolicy] = {"static": static, "eplb": eplb, "activation-aware": activation_aware}

__all__ = ["POLICIES", "activation_aware", "eplb", "static"]
