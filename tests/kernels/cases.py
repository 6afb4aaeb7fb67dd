"""Dispatches to try: random graphs, graphs on which greedy choices go wrong, skewed routing, padding, limits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.kernels.oracle import Case

Rng = np.random.Generator


def draw(kind: str, seed: int) -> Case:
    """Return one small case of a kind of ``KINDS``."""
    return KINDS[kind](np.random.default_rng([seed, *kind.encode()]))


def routing(rng: Rng, experts: int, count: int, zipf: float = 0.0) -> npt.NDArray[np.int32]:
    """Return int32[count]: ids drawn with probability 1/rank^zipf, ranks dealt at random."""
    weights = 1.0 / np.arange(1, experts + 1) ** zipf
    return rng.permutation(experts)[rng.choice(experts, count, p=weights / weights.sum())].astype(np.int32)


def _all_ids(rng: Rng, experts: int) -> npt.NDArray[np.int32]:
    return rng.permutation(experts).astype(np.int32)


def _some(rng: Rng, instances: int, count: int) -> tuple[int, ...]:
    return tuple(sorted(rng.choice(instances, min(count, instances), replace=False).tolist()))


def _random(rng: Rng) -> Case:
    instances, experts = int(rng.integers(1, 17)), int(rng.integers(1, 97))
    replicas = tuple(_some(rng, instances, int(rng.integers(1, 5))) for _ in range(experts))
    ids = routing(rng, experts, int(rng.integers(1, 200)), float(rng.choice([0.0, 0.6, 1.0, 2.0])))
    load0 = rng.integers(0, 6, instances).astype(np.int32) if rng.random() < 0.4 else None
    return Case(name="random", ids=ids, replicas=replicas, instances=instances, load0=load0)


def _chain(rng: Rng) -> Case:
    """Neighbours share experts, and all that cannot move is at one end: repairs walk the whole chain."""
    instances = int(rng.integers(3, 34))
    at = rng.permutation(instances).tolist()
    links = [(at[i], at[i + 1]) for i in range(instances - 1)] * int(rng.integers(1, 4))
    stuck = [(at[0],)] * int(rng.integers(1, 8))
    replicas = tuple(tuple(sorted(hosts)) for hosts in [links[i] for i in rng.permutation(len(links))] + stuck)
    return Case(name="chain", ids=_all_ids(rng, len(replicas)), replicas=replicas, instances=instances)


def _ring(rng: Rng) -> Case:
    instances = int(rng.integers(3, 65))
    links = [tuple(sorted((i, (i + 1) % instances))) for i in range(instances)] * 2
    replicas = tuple(links[i] for i in rng.permutation(len(links)))
    load0 = rng.integers(0, 4, instances).astype(np.int32)
    return Case(name="ring", ids=_all_ids(rng, len(replicas)), replicas=replicas, instances=instances, load0=load0)


def _fooling(rng: Rng) -> Case:
    """A knock-out tournament: who won a round is asked again in the next, so that greedy loads the winners."""
    rounds = int(rng.integers(2, 7))
    instances = 2**rounds
    at = np.arange(instances) if rng.random() < 0.5 else rng.permutation(instances)
    links = []
    for level in range(rounds):
        step = 2**level
        links += [(int(at[i]), int(at[i + step])) for i in range(0, instances, 2 * step)]
    replicas = tuple(tuple(sorted(hosts)) for hosts in links * int(rng.integers(1, 3)))
    return Case(name="fooling", ids=_all_ids(rng, len(replicas)), replicas=replicas, instances=instances)


def _queued(rng: Rng) -> Case:
    """Queues so long that the potential needs all of its bits, and experts with two or three hosts among them."""
    instances, experts = int(rng.integers(2, 65)), int(rng.integers(2, 120))
    top = int(rng.choice([3, 40, 2**18]))
    load0 = rng.integers(max(0, top - 12), top + 1, instances).astype(np.int32)
    replicas = tuple(_some(rng, instances, int(rng.integers(2, 4))) for _ in range(experts))
    return Case(name="queued", ids=_all_ids(rng, experts), replicas=replicas, instances=instances, load0=load0)


def _padding(rng: Rng) -> Case:
    instances, experts = int(rng.integers(1, 9)), int(rng.integers(1, 40))
    replicas = tuple(_some(rng, instances, int(rng.integers(1, 4))) for _ in range(experts))
    ids = routing(rng, experts, int(rng.integers(1, 80)))
    wrong = np.array([-1, -7, -(2**31), experts, experts + 1, 2**31 - 1], dtype=np.int64).astype(np.int32)
    ids = np.where(rng.random(len(ids)) < rng.choice([0.2, 1.0]), rng.choice(wrong, len(ids)), ids)
    return Case(name="padding", ids=ids, replicas=replicas, instances=instances)


def _wide(rng: Rng) -> Case:
    """Many instances and experts, so that every lane and every chunk of the order is used."""
    instances, experts = int(rng.integers(33, 65)), int(rng.integers(200, 513))
    replicas = tuple(_some(rng, instances, int(rng.integers(1, 4))) for _ in range(experts))
    ids = routing(rng, experts, int(rng.integers(1, 1500)), 0.6)
    return Case(name="wide", ids=ids, replicas=replicas, instances=instances)


def largest(seed: int = 0) -> Case:
    """512 experts, 64 instances, 65536 ids."""
    rng = np.random.default_rng(seed)
    replicas = tuple(_some(rng, 64, int(rng.integers(1, 5))) for _ in range(512))
    return Case(name="largest", ids=routing(rng, 512, 65536, 1.0), replicas=replicas, instances=64)


KINDS: dict[str, Callable[[Any], Case]] = {
    "random": _random,
    "chain": _chain,
    "ring": _ring,
    "fooling": _fooling,
    "queued": _queued,
    "padding": _padding,
    "wide": _wide,
}
