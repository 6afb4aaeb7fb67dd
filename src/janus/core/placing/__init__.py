"""Which expert instance should hold a replica of which expert, and how to get there without a pause. Pure."""

from janus.core.placing.policies import POLICIES

__all__ = ["POLICIES"]
