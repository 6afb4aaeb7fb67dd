"""What a placement is judged by: tokens per host, experts chosen together on one host, and a_max.

a_max, the largest number of experts that any host activates for a batch, is estimated by Monte Carlo as in the paper
(arXiv 2512.13525, section 3.5): B tokens are drawn from a trace, and their experts scheduled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from janus.core.placement import EMPTY, Placement
from janus.core.placing.contract import Held

_Trace = npt.NDArray[np.integer[Any]]
_Bools = npt.NDArray[np.bool_]
_Floats = npt.NDArray[np.float64]


def token_imbalance(holding: _Bools, loads: _Floats, speeds: _Floats) -> float:
    """Return the busiest host's tokens for its speed, over those of a perfect balance; 1 = balanced.

    Replicas of an expert share its load evenly. ``holding`` bool[G, E], ``loads`` float[E], ``speeds`` float[G].
    """
    share = loads / np.maximum(holding.sum(axis=0), 1)
    return float((holding @ share / speeds).max() * speeds.sum() / loads.sum())


def coactivation_cost(holding: _Bools, coactivation: _Floats, speeds: _Floats) -> float:
    """Return ``max_g I(g) / speed(g)^2``, where I(g) is the co-activation over pairs of experts on g (paper, app. B).

    Of n experts active on a host, n (n - 1) / 2 pairs are: pairs grow with the square of a_g. Hosts that take equally
    long have equal a_g / speed, so it is I / speed^2 that they should have alike.
    """
    held = holding.astype(np.float64)
    pairs = np.einsum("ge,ge->g", held @ coactivation, held) / 2
    return float((pairs / speeds**2).max())


class Batches:
    """Batches drawn from a trace, of which every placement is asked how it would serve them. M batches, E experts."""

    def __init__(self, trace: _Trace, num_experts: int, batches: Sequence[int], samples: int, seed: int) -> None:
        """Draw ``samples`` batches of each of the sizes ``batches``, with replacement. ``trace`` int[S, K]."""
        random = np.random.default_rng(seed)
        parts = []
        for size in batches:
            tokens = random.integers(0, len(trace), (samples, size))
            active = np.zeros((samples, num_experts), dtype=bool)
            active[np.arange(samples)[:, None], trace[tokens].reshape(samples, -1)] = True
            parts.append(active)
        #: bool[M, E]: whether a batch activates an expert.
        self.active = np.concatenate(parts)
        self._active = self.active.astype(np.float32)
        self._rows = [np.flatnonzero(column)[:, None] for column in self.active.T]

    def times(self, holding: _Bools, speeds: _Floats) -> _Floats:
        """Return float64[M, G]: experts that each host activates for each batch, divided by its speed.

        The greedy choice that AEBS starts from (``janus.core.scheduling.aebs``), all batches at once: an undecided
        expert weighs 1 / replicas on each of its hosts; those with the fewest replicas choose first. AEBS then repairs
        what is not optimal; this does not, so it is an estimate from above.
        """
        replicas = holding.sum(axis=0)
        weights = holding / np.maximum(replicas, 1)
        potential = (self._active @ weights.T.astype(np.float32)).astype(np.float64)
        alike = bool((speeds == speeds[0]).all())
        several = np.flatnonzero(replicas > 1)
        several = several[np.argsort(replicas[several], kind="stable")]
        flat, hosts_of = potential.ravel(), np.split(np.nonzero(holding.T[several])[1], np.cumsum(replicas[several]))
        for expert, hosts in zip(several.tolist(), hosts_of, strict=False):
            places = self._rows[expert] * len(holding) + hosts
            rest = flat[places] - 1 / len(hosts)
            best = (rest if alike else (rest + 1) / speeds[hosts]).argmin(axis=1)
            rest[np.arange(len(rest)), best] += 1
            flat[places] = rest
        return np.asarray(np.round(potential) / speeds)

    def mean_a_max(self, holding: _Bools, speeds: _Floats) -> float:
        """Return the mean over the batches of the time of the slowest host, in experts of a host of speed 1."""
        return float(self.times(holding, speeds).max(axis=1).mean())


def estimate_a_max(
    where: Placement | Held,
    trace: _Trace,
    *,
    batch: int,
    samples: int = 64,
    seed: int = 0,
    speeds: Sequence[float] | None = None,
) -> _Floats:
    """Return float64[L], the mean a_max of each layer over ``samples`` batches of ``batch`` tokens.

    With ``speeds``, the mean of ``max_g a_g / speed_g``. See ``Batches.times`` for what it estimates.

    Args:
        where: the placement, or a target.
        trace: int[L, S, K], S > 0: the experts that sampled tokens chose.
    """
    held = _held(where)
    experts = 1 + max(expert for host in held[0] for expert in host)
    found = []
    for layer, hosts in enumerate(held):
        holding = np.zeros((len(hosts), experts), dtype=bool)
        for host, each in enumerate(hosts):
            holding[host, list(each)] = True
        speed = np.ones(len(hosts)) if speeds is None else np.array(speeds, dtype=np.float64)
        found.append(Batches(trace[layer], experts, [batch], samples, seed).mean_a_max(holding, speed))
    return np.array(found)


def a_max_bound(where: Placement | Held, trace: _Trace, *, batch: int) -> _Floats:
    """Return float64[L], the paper's bound on the mean a_max (appendix A), from how often each expert is chosen.

    ``min(C, abar + sqrt(2 abar ln G)) + 1``, abar = max over hosts of ``sum_e (1 - (1 - p_e)^B)``, C the most experts
    on a host. It counts each expert on all its hosts, tokens as independent.
    """
    found = []
    for layer, hosts in enumerate(_held(where)):
        chosen = np.bincount(trace[layer].ravel(), minlength=1 + max(max(host, default=0) for host in hosts))
        seen = 1 - (1 - chosen / len(trace[layer])) ** batch
        mean = max(float(seen[list(host)].sum()) for host in hosts)
        found.append(min(max(map(len, hosts)), mean + np.sqrt(2 * mean * np.log(len(hosts)))) + 1)
    return np.array(found)


def _held(where: Placement | Held) -> Held:
    if not isinstance(where, Placement):
        return where
    return tuple(tuple(tuple(e for e in host if e != EMPTY) for host in layer) for layer in where.slots)
