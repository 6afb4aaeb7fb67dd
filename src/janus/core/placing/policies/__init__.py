"""The placement policies, by the names that ``--placement`` takes."""

from __future__ import annotations

from janus.core.placing.contract import PlacingPolicy
from janus.core.placing.policies.activation_aware import place_activation_aware
from janus.core.placing.policies.eplb import place_eplb
from janus.core.placing.policies.static import place_static

POLICIES: dict[str, PlacingPolicy] = {
    "static": place_static,
    "eplb": place_eplb,
    "activation-aware": place_activation_aware,
}

__all__ = ["POLICIES"]
