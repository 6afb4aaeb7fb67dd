"""Synthetic routing, for planning before a trace is at hand, and for workloads with a skew that is known.

A token chooses the K experts with the largest ``log popularity + affinity of its topic + Gumbel noise``. Without topics
that is drawing K distinct experts one after the other, each with a probability in proportion to its popularity (Yellott
1977; Kool, van Hoof, Welling 2019). Topics make experts that are chosen together: each has its own preferences.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from janus.errors import ConfigError

#: Bytes of scores that are held at a time.
_CHUNK_BYTES = 64 << 20


def synthetic_routing(
    experts: int,
    top_k: int,
    tokens: int,
    *,
    layers: int = 1,
    popularity: float | Sequence[float] = 0.0,
    unused: float = 0.0,
    clusters: int = 1,
    affinity: float = 0.0,
    seed: int = 0,
) -> npt.NDArray[np.uint16]:
    """Return uint16[L, S, K], the experts that S tokens choose in L layers: distinct within a token, in no order.

    Layers are independent but for the tokens' topics. The first tokens of a longer routing are not those of a shorter
    one. Same arguments, same routing.

    Args:
        popularity: exponent s of Zipf's law, popularity = rank^-s, 0 = all alike; or the popularity of each rank
            itself, E positive numbers. In each layer ranks are dealt to the experts at random.
        unused: share of the experts that no token chooses; some are, in models and texts that do not belong together.
        clusters: topics, each equally frequent; every token has one, the same in all layers.
        affinity: standard deviation of a topic's preference for an expert, in units of log popularity; 0 = none.

    Raises:
        ConfigError: an argument is out of range, or fewer than K experts are left to choose from.
    """
    used = experts - round(experts * unused) if math.isfinite(unused) else experts
    _check({"experts": experts, "top_k": top_k, "layers": layers, "clusters": clusters}, tokens, unused, affinity)
    if used < top_k:
        raise ConfigError("top_k", f"a token chooses {top_k} experts, {used} are in use", "lower unused or top_k")
    weights = _log_popularity(experts, popularity)
    random = np.random.default_rng(seed)
    topics = random.integers(0, clusters, tokens)
    weights[used:] = -np.inf
    chosen = np.empty((layers, tokens, top_k), dtype=np.uint16)
    at_once = max(1, _CHUNK_BYTES // (8 * experts))
    for layer in range(layers):
        popular = weights[random.permutation(experts)]
        preferred = popular + affinity * random.standard_normal((clusters, experts))
        for first in range(0, tokens, at_once):
            some = topics[first : first + at_once]
            scores = random.gumbel(size=(len(some), experts)) + preferred[some]
            if top_k < experts:
                chosen[layer, first : first + at_once] = np.argpartition(scores, -top_k, axis=1)[:, -top_k:]
            else:
                chosen[layer, first : first + at_once] = np.arange(experts)
    return chosen


def _log_popularity(experts: int, popularity: float | Sequence[float]) -> npt.NDArray[np.float64]:
    """Return float64[E], by rank."""
    if isinstance(popularity, int | float):
        if not (math.isfinite(popularity) and popularity >= 0):
            raise ConfigError("popularity", f"is the exponent {popularity}", "give 0 (all alike) or more")
        return np.asarray(-popularity * np.log(np.arange(1.0, experts + 1)))
    given = np.array(popularity, dtype=np.float64)
    if given.shape != (experts,) or not (np.isfinite(given) & (given > 0)).all():
        raise ConfigError("popularity", f"has the shape {given.shape}", f"give {experts} positive numbers")
    return np.log(given)


def _check(counts: Mapping[str, int], tokens: int, unused: float, affinity: float) -> None:
    for name, value in counts.items():
        if value < 1:
            raise ConfigError(name, f"is {value}", "give at least 1")
    if counts["experts"] > 1 << 16:
        raise ConfigError("experts", f"is {counts['experts']}", "give at most 65536")
    if tokens < 0:
        raise ConfigError("tokens", f"is {tokens}", "give 0 or more")
    if not 0 <= unused < 1:
        raise ConfigError("unused", f"is {unused}", "give a share, at least 0 and below 1")
    if not (math.isfinite(affinity) and affinity >= 0):
        raise ConfigError("affinity", f"is {affinity}", "give 0 or more")
