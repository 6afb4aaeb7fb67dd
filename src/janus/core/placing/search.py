"""A bounded local search for placements with a small a_max on given batches."""

from __future__ import annotations

from itertools import zip_longest

import numpy as np
import numpy.typing as npt

from janus.core.placing.nearby import weighted
from janus.core.placing.objective import Batches
from janus.core.placing.problem import Holding, LayerProblem

_Floats = npt.NDArray[np.float64]
#: The entries of a holding that change to their opposites.
_Change = tuple[tuple[int, int], ...]

#: Placements judged per layer: so many that this many replica choices are made for each of the batches, in all layers
#: together no more than `_CHOICES_IN_ALL`, and at most `_MOST` placements.
_CHOICES = 12_000
_CHOICES_IN_ALL = 60_000
_MOST = 240
#: Changes that are judged before the search gives up on a placement; the best by their guessed gain.
_TRIES = 24
#: Better by less than this is not better: sums of floats differ by as much.
_EPSILON = 1e-9


def improved(problem: LayerProblem, holding: Holding, batches: Batches, *, parts: int = 1) -> Holding:
    """Return ``holding``, or one with a smaller mean a_max on ``batches``, ``weighted``, that exchanges lead to.

    Two changes are tried for the host that is slowest most often: one of its replicas changes places with one of
    another host, or another host gets a second replica of one of its experts, for a replica that others cover. They are
    guessed by co-activation and by load, and judged on the batches; the first that helps is made. The work is bounded
    by a count of judgements, so the result depends on nothing but the arguments; ``parts`` searches share it.
    """
    choices = min(_CHOICES, _CHOICES_IN_ALL // problem.num_layers)
    left = min(_MOST, choices // max(1, int((holding.sum(axis=0) > 1).sum()))) // parts

    def judged(holding: Holding) -> tuple[float, _Floats]:
        times = batches.times(holding, problem.speeds)
        return weighted(problem, holding, float(times.max(axis=1).mean())), times

    best, times = judged(holding)
    while left > 0:
        for change in _changes(problem, holding, batches, times)[: min(_TRIES, left)]:
            left -= 1
            candidate = holding.copy()
            for host, expert in change:
                candidate[host, expert] ^= True
            score, times_then = judged(candidate)
            if score < best * (1 - _EPSILON):
                holding, best, times = candidate, score, times_then
                break
        else:
            break
    return holding


def _changes(problem: LayerProblem, holding: Holding, batches: Batches, times: _Floats) -> list[_Change]:
    """Return the most promising changes, those of the three guesses in turn."""
    slowest = int((times >= times.max(axis=1, keepdims=True)).sum(axis=0).argmax())
    replicas = holding.sum(axis=0)
    active, mean = batches.active.mean(axis=0) / replicas, times.mean(axis=0)
    mine = np.flatnonzero(holding[slowest])
    hosts, theirs = np.nonzero(holding & ~holding[slowest])
    if not len(hosts):
        return []
    moved = active[mine][:, None] - active[theirs]
    by_load = np.maximum(mean[slowest] - moved / problem.speeds[slowest], mean[hosts] + moved / problem.speeds[hosts])
    together = problem.coactivation / np.outer(replicas, replicas)
    added = holding @ together
    here = added[slowest][theirs] - added[slowest][mine][:, None] - together[np.ix_(mine, theirs)]
    there = added[hosts][:, mine].T - added[hosts, theirs] - together[np.ix_(mine, theirs)]
    by_coactivation = here / problem.speeds[slowest] ** 2 + there / problem.speeds[hosts] ** 2
    known = holding[hosts][:, mine].T  # an expert cannot go where it is
    # A second replica takes over most where its expert is active most, for one whose others have least to take over.
    spare = np.where(replicas[theirs] > problem.least, active[theirs] / np.maximum(replicas[theirs] - 1, 1), np.inf)
    by_relief = spare - active[mine][:, None] / (1 + replicas[mine][:, None])

    def best(cost: _Floats, *, swap: bool) -> list[_Change]:
        cost = np.where(known, np.inf, cost).ravel()
        first = np.argpartition(cost, min(_TRIES, cost.size - 1))[:_TRIES]
        chosen = [
            divmod(flat, len(hosts))
            for flat in first[np.argsort(cost[first], kind="stable")].tolist()
            if cost[flat] < np.inf
        ]
        return [
            ((int(hosts[take]), int(mine[give])), (int(hosts[take]), int(theirs[take])))
            + (((slowest, int(mine[give])), (slowest, int(theirs[take]))) if swap else ())
            for give, take in chosen
        ]

    guesses = best(by_load, swap=True), best(by_coactivation, swap=True), best(by_relief, swap=False)
    return [change for turn in zip_longest(*guesses) for change in turn if change is not None]
