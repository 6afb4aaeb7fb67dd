"""Make the busiest host activate few distinct experts (paper arXiv 2512.13525, appendix B, algorithm 3, and more)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from janus.core.placing.contract import Held, PlacingRequest
from janus.core.placing.matching import matched
from janus.core.placing.nearby import choose, doubled, filled, kept
from janus.core.placing.objective import Batches, coactivation_cost
from janus.core.placing.policies.eplb import packed
from janus.core.placing.policies.static import dealt, even
from janus.core.placing.problem import Holding, LayerProblem, as_held, problems
from janus.core.placing.replicas import replica_counts
from janus.core.placing.search import improved

#: Batches that a placement is judged on: a_max depends on the placement where a batch activates some experts and not
#: others, which is at B in [10, 100] for large models (paper, appendix A) and below for small ones.
BATCHES = (4, 16, 64)
#: Of each size.
SAMPLES = 64


def place_activation_aware(request: PlacingRequest) -> Held:
    """Keep experts that are active together on different hosts, and let no host activate many; nodes spread.

    A ``PlacingPolicy``. Its own objective is the mean a_max of batches drawn from the trace, for the hosts' speeds;
    without a trace, ``coactivation_cost``; without statistics it deals evenly, and changes as little as it can.
    """
    return as_held([apart(problem) if request.activity else even(problem) for problem in problems(request)])


def apart(problem: LayerProblem) -> Holding:
    """Return the best of new placements and of what is in force, improved on the trace.

    With a trace, algorithm 3 competes with the balance of tokens and the even deal: where spare replicas leave AEBS a
    choice, or tokens choose experts independently, these are as good or a little better. Only the best is improved.
    """
    batches = judge(problem)
    near = [kept(problem)] if problem.held.any() else []
    if batches is None:
        return choose(
            problem,
            [matched(problem, algorithm_3(problem)), *near],
            lambda holding: coactivation_cost(holding, problem.coactivation, problem.speeds),
        )

    def score(holding: Holding) -> float:
        return batches.mean_a_max(holding, problem.speeds)

    starts = [min((algorithm_3(problem), packed(problem), dealt(problem)), key=score), *near]
    starts[0] = matched(problem, starts[0])
    return choose(problem, [improved(problem, each, batches, parts=len(starts)) for each in starts], score)


def judge(problem: LayerProblem) -> Batches | None:
    """Return the batches that the placements of a layer are compared on, the same for all; ``None`` without trace."""
    if problem.trace is None:
        return None
    return Batches(problem.trace, len(problem.loads), BATCHES, SAMPLES, seed=problem.layer)


def algorithm_3(problem: LayerProblem) -> Holding:
    """Return the paper's placement: replicas in descending load, each where it adds the least co-activation.

    What it adds is divided by speed^2, as in ``coactivation_cost``; where that is equal, a node that has no replica of
    the expert goes first, then the host with the least load for its speed. If all hosts with room have the expert, a
    replica of another expert makes way from one without it to there.
    """
    total, together = len(problem.quotas), problem.coactivation
    counts = replica_counts(
        problem.loads, total_slots=int(problem.quotas.sum()), num_instances=total, least=problem.least
    )
    share = problem.loads / counts
    holding = np.zeros((total, len(counts)), dtype=bool)
    added = np.zeros((total, len(counts)))  # co-activation of each expert with what a host has
    room, load, square = problem.quotas.copy(), np.zeros(total), problem.speeds**2
    for expert in np.argsort(-share, kind="stable").tolist():
        has_it = np.zeros(total, dtype=bool)  # by node
        for _ in range(int(counts[expert])):
            open_ = (room > 0) & ~holding[:, expert]
            if not open_.any():
                host = _make_way(holding, room, expert, added / square[:, None])
                if host < 0:
                    break
                added = holding @ together
            else:
                same_node = has_it[problem.nodes]
                cost = np.where(open_, added[:, expert] / square, np.inf)
                host = int(np.lexsort((load / problem.speeds, same_node, cost))[0])
                room[host] -= 1
            holding[host, expert] = has_it[problem.nodes[host]] = True
            load[host] += share[expert]
            added[host] += together[expert]
    return doubled(problem, filled(problem, holding))


def _make_way(holding: Holding, room: npt.NDArray[np.int64], expert: int, added: npt.NDArray[np.float64]) -> int:
    """Move one replica from a full host without ``expert`` to one with room, the cheapest such; return the full host.

    ``added`` float[G, E] is what an expert costs on a host. Returns -1 when there is none.
    """
    free = np.flatnonzero(room > 0)
    full = np.flatnonzero((room <= 0) & ~holding[:, expert])
    hosts, others = np.nonzero(holding[full])
    if not len(hosts) or not len(free):
        return -1
    cost = added[free][:, others] + added[full, expert][hosts] - added[full[hosts], others]
    cost[holding[free][:, others]] = np.inf
    to, which = np.unravel_index(int(cost.argmin()), cost.shape)
    if not np.isfinite(cost[to, which]):
        return -1
    host, other, target = int(full[hosts[which]]), int(others[which]), int(free[to])
    holding[host, other], holding[target, other] = False, True
    room[target] -= 1
    return host
