"""Staying near what is in force: the least that must change, and which target to take."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from janus.core.placing.problem import Holding, LayerProblem

#: A target that loads all its replicas anew must be this much better than one that loads none.
MOVING_COSTS = 0.05
#: What is in force stays unless a target is better by this: the batches that both are judged on are a sample.
WORTH_CHANGING = 0.01


def kept(problem: LayerProblem) -> Holding:
    """Return what is in force with the fewest changes that fill every quota and place every expert.

    Hosts with too many drop what has most replicas for its load; experts that are nowhere go to the host with the least
    load for its speed, the busiest first; free slots take the expert with the most load per replica.
    """
    holding = problem.held.copy()
    loads, quotas = problem.loads, problem.quotas
    for host in np.argsort(quotas - holding.sum(axis=1), kind="stable").tolist():
        for _ in range(int(holding[host].sum() - quotas[host])):
            holding[host, _least_missed(problem, holding, host)] = False
    lost = np.flatnonzero(~holding.any(axis=0))
    for expert in lost[np.argsort(-loads[lost], kind="stable")].tolist():
        room = holding.sum(axis=1) < quotas
        if not room.any():  # then some replica is a second one, for the quotas hold all experts
            host, second = _most_spare(problem, holding)
            holding[host, second] = False
            room[host] = True
        holding[_lightest(problem, holding, room), expert] = True
    return doubled(problem, filled(problem, holding))


def _least_missed(problem: LayerProblem, holding: Holding, host: int) -> int:
    """Return the expert of ``host`` whose other replicas have least to take over; one without others counts as most."""
    others = holding.sum(axis=0) - 1
    per_other = np.where(others > 0, problem.loads / np.maximum(others, 1), problem.loads + problem.loads.sum())
    return int(np.where(holding[host], per_other, np.inf).argmin())


def _most_spare(problem: LayerProblem, holding: Holding) -> tuple[int, int]:
    """Return (host, expert) of a replica that others cover, of the expert with the least load for the others."""
    others = holding.sum(axis=0) - 1
    expert = int(np.where(others > 0, problem.loads / np.maximum(others, 1), np.inf).argmin())
    hosts = np.flatnonzero(holding[:, expert])
    return int(hosts[load_per_speed(problem, holding)[hosts].argmax()]), expert


def _lightest(problem: LayerProblem, holding: Holding, room: npt.NDArray[np.bool_]) -> int:
    return int(np.where(room, load_per_speed(problem, holding), np.inf).argmin())


def load_per_speed(problem: LayerProblem, holding: Holding) -> npt.NDArray[np.float64]:
    """Return float64[G]: the load of each host, each replica taking its share, divided by its speed."""
    share = problem.loads / np.maximum(holding.sum(axis=0), 1)
    return np.asarray(holding @ share / problem.speeds, dtype=np.float64)


def filled(problem: LayerProblem, holding: Holding) -> Holding:
    """Return ``holding`` with every free slot taken, by the expert with the most load per replica not there yet."""
    holding = holding.copy()
    while (room := holding.sum(axis=1) < problem.quotas).any():
        host = _lightest(problem, holding, room)
        per_replica = np.where(holding[host], -1.0, problem.loads / holding.sum(axis=0))
        holding[host, int(per_replica.argmax())] = True
    return holding


def doubled(problem: LayerProblem, holding: Holding) -> Holding:
    """Return ``holding`` with ``problem.least`` replicas of every expert, as far as spare ones can give way to them.

    The busiest experts first; what gives way is missed least, on a node that has no replica of the expert if there is
    one.
    """
    counts = holding.sum(axis=0)
    few = np.flatnonzero(counts < problem.least)
    if not len(few):
        return holding
    holding = holding.copy()
    for expert in few[np.argsort(-problem.loads[few], kind="stable")].tolist():
        while counts[expert] < problem.least:
            spare = holding & (counts > problem.least) & ~holding[:, [expert]]
            if not spare.any():
                break
            missed = np.where(spare, problem.loads / np.maximum(counts - 1, 1), np.inf)
            there = np.isin(problem.nodes, problem.nodes[holding[:, expert]])
            host, other = np.unravel_index(int((missed + problem.loads.sum() * there[:, None]).argmin()), spare.shape)
            holding[host, other], holding[host, expert] = False, True
            counts[other] -= 1
            counts[expert] += 1
    return holding


def weighted(problem: LayerProblem, holding: Holding, score: float) -> float:
    """Return ``score``, of which less is better, raised by up to ``MOVING_COSTS`` for what ``holding`` must load."""
    loads = np.count_nonzero(holding & ~problem.held)
    return score * (1 + MOVING_COSTS * loads / int(problem.quotas.sum()))


def choose(problem: LayerProblem, candidates: Iterable[Holding], score: Callable[[Holding], float]) -> Holding:
    """Return the best of ``candidates`` by their ``weighted`` scores, of which less is better.

    Where what is in force is itself an answer, it is returned unless that is better by ``WORTH_CHANGING``.
    """
    options = list(candidates)
    scores = [weighted(problem, each, score(each)) for each in options]
    best = min(range(len(options)), key=lambda index: (scores[index], index))
    if problem.in_place and scores[best] >= score(problem.held) * (1 - WORTH_CHANGING):
        return problem.held
    return options[best]
