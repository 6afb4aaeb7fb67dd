"""The best placement of a small layer there is, by mixed-integer programming (HiGHS). G hosts, E experts.

Every program places each expert on as many hosts as it has replicas, and on no host more than its quota.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import highspy
import numpy as np
import numpy.typing as npt


class _Program:
    """``held[g][e]`` in {0, 1}, and what is to be as small as possible."""

    def __init__(self, quotas: Sequence[int], num_experts: int, time_limit_s: float) -> None:
        self.solver = highspy.Highs()
        self.solver.setOptionValue("output_flag", False)
        self.solver.setOptionValue("time_limit", time_limit_s)
        self.solver.setOptionValue("threads", 1)
        self.solver.setOptionValue("mip_rel_gap", 1e-6)
        self.held: list[list[Any]] = [[self.solver.addBinary() for _ in range(num_experts)] for _ in quotas]
        for host, quota in zip(self.held, quotas, strict=True):
            self.solver.addConstr(sum(host) <= quota)

    def replicas(self, counts: npt.NDArray[np.int64]) -> None:
        for expert, count in enumerate(counts.tolist()):
            self.solver.addConstr(sum(host[expert] for host in self.held) == count)

    def minimize(self, objective: Any) -> tuple[float, bool]:
        """Return the objective of the best placement found, and whether it is proven to be the best."""
        self.solver.minimize(objective)
        proven = self.solver.getModelStatus() == highspy.HighsModelStatus.kOptimal
        return float(self.solver.getObjectiveValue()), proven


def least_load(
    counts: npt.NDArray[np.int64], share: npt.NDArray[np.float64], quotas: Sequence[int], time_limit_s: float = 20.0
) -> tuple[float, bool]:
    """Return the least load of the busiest host, replicas of expert e having the load ``share[e]``; and if proven."""
    program = _Program(quotas, len(counts), time_limit_s)
    program.replicas(counts)
    busiest = program.solver.addVariable(lb=0)
    for host in program.held:
        program.solver.addConstr(sum(float(s) * x for s, x in zip(share, host, strict=True)) <= busiest)
    return program.minimize(busiest)


def least_coactivation(
    counts: npt.NDArray[np.int64], together: npt.NDArray[np.float64], quotas: Sequence[int], time_limit_s: float = 20.0
) -> tuple[float, bool]:
    """Return the least max_g I(g) there is (the paper's objective, appendix B), and whether it is proven."""
    program = _Program(quotas, len(counts), time_limit_s)
    program.replicas(counts)
    busiest = program.solver.addVariable(lb=0)
    for host in program.held:
        pairs = []
        for one in range(len(counts)):
            for other in range(one):
                if together[one, other]:
                    both = program.solver.addVariable(lb=0, ub=1)
                    program.solver.addConstr(both >= host[one] + host[other] - 1)
                    pairs.append(float(together[one, other]) * both)
        program.solver.addConstr(sum(pairs) <= busiest)
    return program.minimize(busiest)


def least_a_max(active: npt.NDArray[np.bool_], quotas: Sequence[int], time_limit_s: float = 20.0) -> tuple[float, bool]:
    """Return the least mean a_max over the batches ``active`` bool[M, E] that any placement has, and if proven.

    Replica counts are free here. A batch's schedule is part of the program: with its a_max whole, its choices need not
    be, for a matching that fits in fractions fits in whole numbers.
    """
    program = _Program(quotas, active.shape[1], time_limit_s)
    solver, slowest = program.solver, []
    for expert in range(active.shape[1]):
        solver.addConstr(sum(host[expert] for host in program.held) >= 1)
    for batch in active:
        a_max = solver.addIntegral(lb=0)
        takes = [{e: solver.addVariable(lb=0, ub=1) for e in np.flatnonzero(batch).tolist()} for _ in quotas]
        for host, taken in zip(program.held, takes, strict=True):
            for expert, share in taken.items():
                solver.addConstr(share <= host[expert])
            solver.addConstr(sum(taken.values()) <= a_max)
        for expert in np.flatnonzero(batch).tolist():
            solver.addConstr(sum(taken[expert] for taken in takes) == 1)
        slowest.append(a_max)
    total, proven = program.minimize(sum(slowest))
    return total / len(active), proven
