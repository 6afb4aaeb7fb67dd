"""Experts dealt evenly. Instances that come or go change it, load does not."""

from __future__ import annotations

from janus.core.placing.contract import Held, PlacingRequest
from janus.core.placing.dealing import deal
from janus.core.placing.nearby import doubled, kept
from janus.core.placing.problem import Holding, LayerProblem, as_held, as_holding, problems


def place_static(request: PlacingRequest) -> Held:
    """Deal experts round-robin, and spare slots to the busiest; what is in force stays as far as it can.

    A ``PlacingPolicy``. Its own objective is that every host has its quota, so what is in force on the same hosts with
    these quotas is never changed.
    """
    return as_held([even(problem) for problem in problems(request)])


def even(problem: LayerProblem) -> Holding:
    """Return the even deal of one layer, or, where something is in force, the fewest changes to this."""
    if problem.in_place:
        return problem.held
    if problem.held.any():
        return kept(problem)
    return dealt(problem)


def dealt(problem: LayerProblem) -> Holding:
    """Return the even deal of one layer, whatever is in force."""
    found = deal(
        problem.loads,
        problem.quotas.tolist(),
        layer=problem.layer,
        speeds=problem.speeds.tolist(),
        least=problem.least,
    )
    return doubled(problem, as_holding(tuple(tuple(held) for held in found), len(problem.loads)))
