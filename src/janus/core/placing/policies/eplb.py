"""Balance tokens, as DeepSeek's expert-parallel load balancer (EPLB) does."""

from __future__ import annotations

import numpy as np

from janus.core.placing.contract import Held, PlacingRequest
from janus.core.placing.matching import matched
from janus.core.placing.nearby import choose, doubled, filled, kept, load_per_speed
from janus.core.placing.objective import token_imbalance
from janus.core.placing.policies.static import even
from janus.core.placing.problem import Holding, LayerProblem, as_held, problems
from janus.core.placing.replicas import replica_counts

#: Exchanges of two replicas that are tried to bring what is in force into balance.
_EXCHANGES = 64


def place_eplb(request: PlacingRequest) -> Held:
    """Spread tokens evenly over the hosts, for their speeds; without statistics, deal evenly.

    A ``PlacingPolicy``. Its own objective is ``token_imbalance``.
    """
    return as_held([balanced(problem) if request.activity else even(problem) for problem in problems(request)])


def balanced(problem: LayerProblem) -> Holding:
    """Return the better of a new packing and of what is in force, both with exchanges that improve the balance."""

    def score(holding: Holding) -> float:
        return token_imbalance(holding, problem.loads, problem.speeds)

    candidates = [exchanged(problem, matched(problem, packed(problem)))]
    if problem.held.any():
        candidates.append(exchanged(problem, kept(problem)))
    return choose(problem, candidates, score)


def packed(problem: LayerProblem) -> Holding:
    """Return the packing: replicas by load per replica, the heaviest first to the least loaded host with room.

    EPLB's hierarchy is kept as far as hosts allow: a replica goes to a node that has none of its expert yet, if one
    has room, so that the loss of a node loses few experts.
    """
    total = len(problem.quotas)
    counts = replica_counts(
        problem.loads, total_slots=int(problem.quotas.sum()), num_instances=total, least=problem.least
    )
    share = problem.loads / counts
    holding = np.zeros((total, len(counts)), dtype=bool)
    room, load = problem.quotas.copy(), np.zeros(total)
    for expert in np.argsort(-share, kind="stable").tolist():
        has_it = np.zeros(total, dtype=bool)  # by node
        for _ in range(int(counts[expert])):
            open_ = (room > 0) & ~holding[:, expert]
            if not open_.any():
                break
            elsewhere = open_ & ~has_it[problem.nodes]
            if elsewhere.any():
                open_ = elsewhere
            host = int(np.where(open_, (load + share[expert]) / problem.speeds, np.inf).argmin())
            holding[host, expert] = has_it[problem.nodes[host]] = True
            room[host] -= 1
            load[host] += share[expert]
    return doubled(problem, filled(problem, holding))


def exchanged(problem: LayerProblem, holding: Holding) -> Holding:
    """Return ``holding`` after exchanges of a replica of the busiest host for one of another, the best first.

    None brings a replica to a node that has its expert already.
    """
    holding = holding.copy()
    share = problem.loads / holding.sum(axis=0)
    for _ in range(_EXCHANGES):
        load = load_per_speed(problem, holding)
        busiest = int(load.argmax())
        mine = np.flatnonzero(holding[busiest])
        hosts, theirs = np.nonzero(holding & ~holding[busiest])
        moved = share[mine][:, None] - share[theirs]  # [mine, theirs], what the busiest gets rid of
        here = load[busiest] - moved / problem.speeds[busiest]
        there = load[hosts] + moved / problem.speeds[hosts]
        on_node = _on_node(problem, holding)
        leaves = problem.nodes[hosts] != problem.nodes[busiest]
        barred = holding[hosts][:, mine].T | (leaves & on_node[hosts][:, mine].T) | (leaves & on_node[busiest][theirs])
        after = np.where(barred, np.inf, np.maximum(here, there))
        if not after.size or after.min() >= load[busiest] * (1 - 1e-6):
            break
        give, take = np.unravel_index(int(after.argmin()), after.shape)
        host, x, y = int(hosts[take]), int(mine[give]), int(theirs[take])
        holding[busiest, x] = holding[host, y] = False
        holding[busiest, y] = holding[host, x] = True
    return holding


def _on_node(problem: LayerProblem, holding: Holding) -> Holding:
    """Return bool[G, E]: whether any host of a host's node has an expert."""
    nodes = np.zeros((int(problem.nodes.max()) + 1, holding.shape[1]), dtype=bool)
    np.logical_or.at(nodes, problem.nodes, holding)
    return np.asarray(nodes[problem.nodes])
