"""How many experts the busiest instance activates, a_max, for any number of instances and any batch.

A table of it is made by Monte Carlo, as in arXiv 2512.13525, section 3.5: B tokens are drawn from a trace, the experts
are placed by a policy of ``janus.core.placing`` and scheduled by a scheduler of ``janus.core.scheduling``, those that
serve. Placements are made from the first half of the trace and judged on the second: a placement never knows the
future.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from janus.core.placement import EMPTY, Placement
from janus.core.placing.contract import Activity, Held, Host, PlacingPolicy, PlacingRequest
from janus.core.placing.objective import Batches, a_max_bound
from janus.core.placing.policies import POLICIES
from janus.core.planning.elementwise import larger
from janus.core.planning.performance import AMax
from janus.core.scheduling import Scheduler
from janus.errors import ConfigError

_Ids = npt.NDArray[np.integer[Any]]
_Floats = npt.NDArray[np.float64]

#: Tokens per batch that a table is estimated at; between them it is interpolated.
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
#: Of a trace's layers so many are taken, evenly spaced: a table is of their mean.
LAYERS = 4
DRAWS = 32


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AMaxTable:
    """Mean a_max per MoE layer at N numbers of instances and M batch sizes; an ``AMax``, elementwise too.

    Between the points it is linear in log2 B and in 1 / n. Above the largest batch it goes on as between the two
    largest, up to C: it is concave there, so that is an estimate from above. Above the most instances it stays.
    """

    #: C, slots per instance and layer.
    slots: int
    #: Ascending; the first batch is 1 token.
    instances: tuple[int, ...]
    batches: tuple[int, ...]
    #: float64[N, M]: means over draws and layers, and their standard errors.
    mean: _Floats
    error: _Floats
    #: float64[N, M]: the paper's bound (appendix A), as a check; it takes experts for independent of each other.
    bound: _Floats
    #: How it was made.
    about: str = ""
    #: float64[N, M + 1]: what is interpolated.
    _values: _Floats = field(init=False, repr=False)
    _log2_batches: _Floats = field(init=False, repr=False)

    def __post_init__(self) -> None:
        shape = (len(self.instances), len(self.batches))
        ascending = all((np.diff(each) > 0).all() for each in (self.instances, self.batches))
        if 0 in shape or not ascending or self.instances[0] < 1 or self.batches[0] != 1:
            raise ConfigError(
                "a_max", f"is of {self.instances} instances and {self.batches} tokens", "give both ascending, from 1 on"
            )
        if any(each.shape != shape for each in (self.mean, self.error, self.bound)):
            raise ConfigError("a_max", f"has means of the shape {self.mean.shape}", f"give the shape {shape}")
        # More tokens activate no fewer experts; where means of few draws say otherwise, that is chance.
        known = np.minimum(np.maximum.accumulate(self.mean, axis=1), self.slots)
        logs = np.log2(self.batches)
        beyond = known[:, -1:]
        if len(logs) > 1:
            slope = (known[:, -1] - known[:, -2]) / (logs[-1] - logs[-2])
            beyond = (known[:, -1] + slope * _BEYOND)[:, None]
        object.__setattr__(self, "_values", np.concatenate([known, beyond], axis=1))
        object.__setattr__(self, "_log2_batches", np.append(logs, logs[-1] + _BEYOND))

    def __call__(self, experts: Any, batch: Any) -> Any:
        """Return a_max of ``batch`` tokens on ``experts`` instances; floats, or arrays that broadcast."""
        n = np.asarray(self.instances)
        at = np.clip(experts, n[0], n[-1])
        row, part = _between(1 / n[::-1], 1 / at)
        row = len(n) - 1 - row  # 1 / n ascends where n descends
        column, share = _between(self._log2_batches, np.log2(larger(1.0, batch)))
        values = self._values
        nearer = values[row, column] * (1 - share) + values[row, column + 1] * share
        other = np.maximum(row - 1, 0)
        further = values[other, column] * (1 - share) + values[other, column + 1] * share
        found = np.minimum(nearer * (1 - part) + further * part, self.slots)
        return found if found.ndim else float(found)


#: How far beyond the largest batch a table goes on rising, in powers of two; it is at C long before.
_BEYOND = 20.0


def estimate(
    trace: _Ids,
    *,
    num_experts: int,
    slots: int,
    instances: Sequence[int],
    batches: Sequence[int] = BATCHES,
    policy: PlacingPolicy | str = "activation-aware",
    scheduler: Scheduler | None = None,
    draws: int = DRAWS,
    layers: int = LAYERS,
    seed: int = 0,
) -> AMaxTable:
    """Return the table of a model whose router chose as in ``trace``. Same arguments, same table.

    All numbers of instances see the same batches, so that differences between them are not chance.

    Args:
        trace: int[L, S, K], the experts that S tokens chose, oldest first.
        slots: C, replicas per instance and layer.
        instances: numbers of instances, each with room for all experts; see ``instance_grid``.
        batches: sizes of batches; 1 is added.
        policy: of placement, or its name.
        scheduler: that decides; the compiled one is the quickest. Without one, all batches are scheduled at once by the
            greedy choice that AEBS starts from: quick, and a little above (see ``janus.core.placing.objective``).
        draws: batches of each size and layer.
        layers: so many are taken of the trace's, evenly spaced.
        seed: of the draws.

    Raises:
        ConfigError: there are too few tokens, or too few slots for the experts.
    """
    if trace.ndim != 3 or trace.shape[1] < 2:
        raise ConfigError("trace", f"has the shape {trace.shape}", "give layers x tokens x experts, two tokens or more")
    counts, sizes = sorted(set(instances)), sorted({1, *batches})
    if not counts or counts[0] < 1 or sizes[0] < 1 or draws < 1:
        raise ConfigError("instances", f"are {counts}, batches {sizes}, draws {draws}", "give positive numbers")
    some = np.unique(np.linspace(0, len(trace) - 1, min(layers, len(trace))).round().astype(int))
    half = trace.shape[1] // 2
    seen, later = trace[some, :half].astype(np.uint16), trace[some, half:]
    activity = _activity(seen, num_experts)
    place = POLICIES[policy] if isinstance(policy, str) else policy
    drawn = [_Draws(ids, num_experts, sizes, draws, seed + index) for index, ids in enumerate(later)]
    shape = (len(counts), len(sizes))
    mean, error, bound = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    for number, n in enumerate(counts):
        held = _held(place, activity, num_experts, slots, n)
        if scheduler is None:
            found = np.stack([each.greedy(held[layer]) for layer, each in enumerate(drawn)])
        else:
            placement = _placement(held, num_experts, slots)
            found = np.stack([each.scheduled(scheduler, placement, layer) for layer, each in enumerate(drawn)])
        samples = found.transpose(1, 0, 2).reshape(len(sizes), -1)
        mean[number] = samples.mean(axis=1)
        error[number] = samples.std(axis=1, ddof=1) / np.sqrt(samples.shape[1]) if samples.shape[1] > 1 else 0.0
        bound[number] = [a_max_bound(held, later, batch=size).mean() for size in sizes]
    name = policy if isinstance(policy, str) else getattr(policy, "__name__", "a policy of its own")
    way = "greedily" if scheduler is None else "by the scheduler"
    about = f"placed by {name}, scheduled {way}, {draws} draws of {len(some)} layers, seed {seed}"
    return AMaxTable(
        slots=slots,
        instances=tuple(counts),
        batches=tuple(sizes),
        mean=mean,
        error=error,
        bound=bound,
        about=about,
    )


def by_weight(trace: _Ids, weights: _Floats) -> _Ids:
    """Return as many tokens of ``trace`` int[L, S, K], each as often as its weight float[S] says, in the same order.

    Sampled tokens stand for different numbers of routed ones (``janus.core.trace``); what is drawn must not.
    """
    tokens = trace.shape[1]
    if not tokens:
        return trace
    ends = np.cumsum(weights) / weights.sum()
    return np.asarray(trace[:, np.searchsorted(ends, (np.arange(tokens) + 0.5) / tokens)])


def instance_grid(first: int, last: int) -> tuple[int, ...]:
    """Return numbers of instances from ``first`` to ``last`` to estimate at: all of the first, then ever fewer.

    a_max is linear in 1 / n but for the last expert that does not divide evenly, so little is lost between them.
    """
    grid, n = [], first
    while n < last:
        grid.append(n)
        n = max(n + 1, round(n * _GROWTH))
    return (*grid, last) if last >= first else (first,)


_GROWTH = 1.12


class _Draws:
    """Batches of one layer, the same for all placements. M sizes, D draws."""

    def __init__(self, ids: _Ids, num_experts: int, sizes: Sequence[int], draws: int, seed: int) -> None:
        self._ids, self._sizes, self._draws, self._seed = ids, sizes, draws, seed
        self._batches = Batches(ids, num_experts, sizes, draws, seed)
        self._num_experts = num_experts

    def greedy(self, hosts: Sequence[Sequence[int]]) -> _Floats:
        """Return float64[M, D]: a_max of each."""
        holding = np.zeros((len(hosts), self._num_experts), dtype=bool)
        for host, experts in enumerate(hosts):
            holding[host, list(experts)] = True
        times = self._batches.times(holding, np.ones(len(hosts)))
        return np.asarray(times.max(axis=1).reshape(len(self._sizes), self._draws))

    def scheduled(self, scheduler: Scheduler, placement: Placement, layer: int) -> _Floats:
        """Return float64[M, D]: a_max of each, the same batches as ``greedy`` sees."""
        random = np.random.default_rng(self._seed)
        found = np.empty((len(self._sizes), self._draws))
        for number, size in enumerate(self._sizes):
            tokens = random.integers(0, len(self._ids), (self._draws, size))
            for draw, batch in enumerate(tokens):
                ids = np.ascontiguousarray(self._ids[batch], dtype=np.int32)
                found[number, draw] = scheduler(ids, placement, layer).a_max
        return found


def _between(points: _Floats, at: Any) -> tuple[Any, Any]:
    """Return the number of the last point at or below ``at`` that has one after it, and the share of the way to it."""
    if len(points) == 1:
        return np.zeros(np.shape(at), dtype=int), np.zeros(np.shape(at))
    index = np.clip(np.searchsorted(points, at, side="right") - 1, 0, len(points) - 2)
    share = (at - points[index]) / (points[index + 1] - points[index])
    return index, np.clip(share, 0.0, 1.0)


def _activity(ids: npt.NDArray[np.uint16], experts: int) -> Activity:
    """What a placement is made from: uint16[L, S, K]."""
    layers, tokens, _ = ids.shape
    counts = np.zeros((layers, experts))
    together = np.zeros((layers, experts, experts), dtype=np.float32)
    for layer, each in enumerate(ids):
        chosen = np.zeros((tokens, experts), dtype=np.float32)
        np.put_along_axis(chosen, each.astype(np.int64), 1, axis=1)
        counts[layer] = chosen.sum(axis=0)
        together[layer] = chosen.T @ chosen
        np.fill_diagonal(together[layer], 0)
    return Activity(counts=counts, coactivation=together, trace=ids)


def _held(place: PlacingPolicy, activity: Activity, experts: int, slots: int, instances: int) -> Held:
    fill = min(slots, experts)
    return place(
        PlacingRequest(
            num_layers=len(activity.counts),
            num_experts=experts,
            hosts=tuple(Host(name=f"expert-{index}", capacity=fill) for index in range(instances)),
            fill=fill,
            activity=activity,
        )
    )


def _placement(held: Held, experts: int, slots: int) -> Placement:
    wide = min(slots, experts)
    return Placement(
        epoch=1,
        num_experts=experts,
        instances=tuple(f"expert-{index}" for index in range(len(held[0]))),
        slots=tuple(tuple((*host, *(EMPTY,) * (wide - len(host))) for host in layer) for layer in held),
    )


#: A table is what ``step_time`` asks for.
_: type[AMax] = AMaxTable
