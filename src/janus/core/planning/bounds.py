"""A bound on a_max that holds for any routing, beside the paper's (``janus.core.placing.objective.a_max_bound``)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from janus.core.placement import EMPTY, Placement
from janus.core.placing.contract import Held

_Ids = npt.NDArray[np.integer[Any]]


def certain_bound(
    where: Placement | Held, trace: npt.NDArray[np.integer[Any]], *, batch: int
) -> npt.NDArray[np.float64]:
    """Return float64[L], a bound on the mean a_max that holds for experts that are chosen together too.

    Beyond the paper: its bound (``a_max_bound``) takes the experts of a token for independent. Let Z_g be the distinct
    experts on host g that a batch chooses, and m the most that one token chooses on one host. Tokens are independent,
    and one of them changes Z_g by at most m, so Z_g / m is a self-bounding function of the tokens, and
    ``ln E exp(t (Z_g - E Z_g) / m) <= (exp(t) - t - 1) E Z_g / m`` (Boucheron, Lugosi, Massart: A sharp concentration
    inequality with applications, 2000). Hence ``E max_g Z_g <= abar + sqrt(2 m abar ln G) + m ln(G) / 3``, and no
    scheduler gives a host more than Z_g.
    """
    held = _as_held(where)
    found = []
    for layer, hosts in enumerate(held):
        experts = 1 + max(*map(max, filter(None, hosts)), int(trace[layer].max(initial=0)))
        on = np.zeros((len(hosts), experts), dtype=bool)
        for host, each in enumerate(hosts):
            on[host, list(each)] = True
        chosen = np.bincount(trace[layer].ravel(), minlength=experts) / len(trace[layer])
        abar = float((on @ (1 - (1 - chosen) ** batch)).max())
        most = int(on[:, trace[layer]].sum(axis=2).max(initial=0))
        logs = np.log(len(hosts))
        found.append(min(max(map(len, hosts)), abar + np.sqrt(2 * most * abar * logs) + most * logs / 3))
    return np.array(found, dtype=np.float64)


def _as_held(where: Placement | Held) -> Held:
    if not isinstance(where, Placement):
        return where
    return tuple(tuple(tuple(e for e in host if e != EMPTY) for host in layer) for layer in where.slots)
