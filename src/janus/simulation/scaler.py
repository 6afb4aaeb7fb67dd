"""Where an autoscaler is plugged in: it is shown the cluster every few seconds of virtual time, and answers.

``janus.core.scaling.autoscaler.Autoscaler``, which the placement-controller runs, is one; any other policy that has
``observe`` and ``failed`` can be compared with it.
"""

from __future__ import annotations

from typing import Protocol

from janus.core.scaling.contract import Decision, Observation


class Scaler(Protocol):
    """Decides how many instances there should be. Give one to ``Simulation``; one object serves one run."""

    def observe(self, seen: Observation, now: float) -> Decision:
        """Take an observation in and decide; ``Decision.wanted`` is carried out where it differs from the present."""

    def failed(self, problem: str, now: float) -> None:
        """What was decided could not be carried out."""
