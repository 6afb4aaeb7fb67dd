"""The autoscaler's decisions: what was observed in, wanted numbers and the reason out. No clock, no effects.

``Autoscaler.observe(observation, now)`` is called every few seconds, by the placement-controller and by the simulator
alike. ``contract.py`` has what goes in and out, ``autoscaler.py`` the rules, ``learned.py`` and ``planned.py`` what is
expected of other numbers of instances, and ``target.py`` the fewest that hold the SLO.
"""

from janus.core.scaling.autoscaler import Autoscaler
from janus.core.scaling.contract import Counts, Decision, Observation, Prediction, Reason, ScalingConfig

__all__ = ["Autoscaler", "Counts", "Decision", "Observation", "Prediction", "Reason", "ScalingConfig"]
