"""What the router chose lately, over all instances: the sliding window from which a placement's load is estimated.

The window holds the tokens that were sampled last. Every instance samples about as many per second, however many it
routes, so a sampled token stands for ``seen / sampled`` tokens of its message: counts and co-activation are sums of
these weights, estimates of what a census would have counted, and a busy instance counts for as much as its load is. The
trace leaves the weights out: it is for replaying tokens one by one.
"""

from __future__ import annotations

import math
import random

import numpy as np
import numpy.typing as npt

from janus.core.placing.contract import Activity
from janus.core.trace import Trace, counts_of, problem_of
from janus.messages.control import RoutingSample

DEFAULT_TOKENS = 4096
#: A sampled token never stands for more than this: one message must not outweigh the window.
_MAX_WEIGHT = 1 << 20


class ActivationWindow:
    """The last sampled tokens of a model with L MoE layers, E experts and K per token. Bounded; not thread-safe.

    Adding copies rows into a ring. What is derived of it is computed when it is asked for, at most once per content:
    a sum kept up to date by adding and subtracting weights would drift, and costs more than counting anew.
    """

    def __init__(
        self,
        num_layers: int,
        num_experts: int,
        top_k: int,
        *,
        tokens: int = DEFAULT_TOKENS,
        prior: npt.NDArray[np.float64] | None = None,
    ) -> None:
        """``prior``: float[L, E], counts from elsewhere that stand in for the part of the window that is still empty.

        Raises:
            ValueError: a size below 1, more than 65536 experts, or a prior of another shape.
        """
        if min(num_layers, top_k, tokens) < 1 or not top_k <= num_experts <= 1 << 16:
            raise ValueError(f"no window of {tokens} tokens: {num_layers} layers, {num_experts} experts, {top_k} each")
        if prior is not None and prior.shape != (num_layers, num_experts):
            raise ValueError(f"the prior is {list(prior.shape)}, the model {[num_layers, num_experts]}")
        self.num_layers, self.num_experts, self.top_k = num_layers, num_experts, top_k
        self._prior = prior
        self._ids = np.zeros((num_layers, tokens, top_k), dtype=np.uint16)
        self._weights = np.zeros(tokens)
        self._next = 0
        self._size = 0
        #: Tokens ever added.
        self.added = 0
        self._random = random.Random(0)
        self._activity: Activity | None = None

    def __len__(self) -> int:
        """Tokens in the window."""
        return self._size

    @property
    def capacity(self) -> int:
        """Tokens that it holds at most."""
        return len(self._weights)

    def add(self, sample: RoutingSample, *, share: float = 1.0) -> int:
        """Take a message in; returns the number of its tokens that were.

        Args:
            sample: of any instance.
            share: of its tokens to take, 0 to 1; those that are taken stand for the others too.

        Raises:
            ValueError: it is of another model, or contradicts itself; says how. Nothing of it was taken.
        """
        ids = self._checked(sample)
        taken = min(sample.tokens, math.floor(sample.tokens * share + self._random.random())) if share < 1 else None
        if taken is not None:
            ids = ids[:, sorted(self._random.sample(range(sample.tokens), taken))]
        if ids.shape[1]:
            # By the share, not by how many were taken: a message of which none were must be made up for by others.
            self._append(ids, np.full(ids.shape[1], min(sample.seen / sample.tokens / min(share, 1), _MAX_WEIGHT)))
        return int(ids.shape[1])

    def add_trace(self, trace: Trace) -> None:
        """Take the tokens of a trace in, the last ones where it has more than fit.

        Raises:
            TraceError: it is of a model of another shape.
        """
        trace.check_model(
            fingerprint=trace.fingerprint,
            num_layers=self.num_layers,
            num_experts=self.num_experts,
            top_k=self.top_k,
        )
        self._append(trace.expert_ids, trace.weights)

    def activity(self) -> Activity | None:
        """Return what the router chose lately; ``None`` when nothing was sampled and there is no prior."""
        if not self._size and self._prior is None:
            return None
        if self._activity is None:
            self._activity = self._count()
        return self._activity

    def trace(self, *, fingerprint: str, saved_at: float) -> Trace:
        """Return the tokens in the window, oldest first."""
        ids, weights = self._ordered()
        return Trace(
            fingerprint=fingerprint,
            num_experts=self.num_experts,
            expert_ids=ids,
            weights=weights,
            saved_at=saved_at,
        )

    # -- parts -----------------------------------------------------------------------------------------------------

    def _checked(self, sample: RoutingSample) -> npt.NDArray[np.uint16]:
        shape = (sample.layers, sample.tokens, sample.top_k)
        if (sample.layers, sample.top_k) != (self.num_layers, self.top_k) or sample.tokens < 0:
            raise ValueError(f"a sample of shape {list(shape)}; the model has {self.num_layers} layers, K {self.top_k}")
        if len(sample.expert_ids) != 2 * sample.layers * sample.tokens * sample.top_k:
            raise ValueError(f"{len(sample.expert_ids)} bytes are no uint16 {list(shape)}")
        if sample.seen < sample.tokens:
            raise ValueError(f"{sample.tokens} tokens sampled of {sample.seen} seen")
        ids = np.frombuffer(sample.expert_ids, dtype="<u2").reshape(shape)
        problem = problem_of(ids, np.ones(sample.tokens), self.num_experts)
        if problem:
            raise ValueError(problem)
        return ids

    def _append(self, ids: npt.NDArray[np.uint16], weights: npt.NDArray[np.float64]) -> None:
        self.added += len(weights)
        capacity = self.capacity
        ids, weights = ids[:, -capacity:], weights[-capacity:]
        count = len(weights)
        before_end = min(count, capacity - self._next)
        for source, target, length in ((0, self._next, before_end), (before_end, 0, count - before_end)):
            self._ids[:, target : target + length] = ids[:, source : source + length]
            self._weights[target : target + length] = weights[source : source + length]
        self._next = (self._next + count) % capacity
        self._size = min(capacity, self._size + count)
        self._activity = None

    def _ordered(self) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.float64]]:
        """Copies of what is in the window, oldest first."""
        if self._size < self.capacity:
            return self._ids[:, : self._size].copy(), self._weights[: self._size].copy()
        return np.roll(self._ids, -self._next, axis=1), np.roll(self._weights, -self._next)

    def _count(self) -> Activity:
        ids, weights = self._ordered()
        counts = counts_of(ids, weights, self.num_experts)
        empty = self.capacity - self._size
        if self._prior is not None and empty:
            counts += _share(self._prior, self.top_k * empty * (float(weights.mean()) if self._size else 1.0))
        if not self._size:
            return Activity(counts=counts)
        return Activity(counts=counts, coactivation=coactivation_of(ids, weights, self.num_experts), trace=ids)


def coactivation_of(
    expert_ids: npt.NDArray[np.uint16], weights: npt.NDArray[np.float64], num_experts: int
) -> npt.NDArray[np.float32]:
    """Return float32[L, E, E]: the summed weights of the tokens that chose both; symmetric, zero diagonal.

    60 layers of 256 experts and 4096 tokens with 8 each take about 0.1 s.
    """
    layers, _, top_k = expert_ids.shape
    result = np.zeros((layers, num_experts, num_experts), dtype=np.float32)
    first, second = np.triu_indices(top_k, 1)
    spread = np.repeat(weights, len(first))
    for layer, ids in enumerate(expert_ids):
        pairs = ids[:, first].astype(np.int64) * num_experts + ids[:, second]
        one_way = np.bincount(pairs.ravel(), spread, num_experts * num_experts).reshape(num_experts, num_experts)
        np.add(one_way, one_way.T, out=result[layer], casting="same_kind")
    return result


def _share(prior: npt.NDArray[np.float64], total: float) -> npt.NDArray[np.float64]:
    """``prior`` scaled so that each layer sums to ``total``; a layer of zeros is even."""
    sums = prior.sum(axis=1, keepdims=True)
    even = np.full_like(prior, 1 / prior.shape[1])
    shares: npt.NDArray[np.float64] = np.divide(prior, sums, out=even, where=sums > 0)
    return shares * total
