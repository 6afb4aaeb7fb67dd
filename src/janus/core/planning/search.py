"""The cheapest deployment that keeps the SLO: algorithm 2 of arXiv 2512.13525, over more dimensions.

Every (n_a, n_e) is priced, as arrays, for every kind of device per role, tensor parallelism within an attention
instance and number of micro-batches (the paper: one kind, one device, none). So the answer is the optimum of the model,
and what stands beside it says why it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from janus.core.planning.memory import MemoryBudget, attention_memory, expert_memory
from janus.core.planning.performance import Load, StepTime, step_time
from janus.core.planning.plan import Plan, Point, Problem, Violated
from janus.core.planning.plane import CODES, Plane, longest
from janus.core.planning.pricing import planes

#: Decimals of a price that count: sums that differ by rounding are the same price; and what is no difference to a user.
_DIGITS = 9
_CENT = 0.005
_TELLING_MS = 0.05


def search(problem: Problem) -> Plan:
    """Return the plan: the feasible deployment with the fewest devices, or the lowest cost, the quickest of those.

    Raises:
        ConfigError: the profile has no device of a name in ``problem``.
    """
    priced = list(planes(problem))
    bests = [_best(plane, problem) or _nearest(plane, problem) for plane in priced]
    known = [each for each in zip(bests, priced, strict=True) if each[0].violated is None]
    if known:
        nearest, plane = min(known, key=lambda each: rank(each[0], problem))
        neighbours = tuple(_neighbours(nearest, plane, bests, problem))
    else:
        nearest, plane = min(zip(bests, priced, strict=True), key=lambda each: _far(each[0], problem))
        neighbours = ()
    chosen = nearest if known else None
    return Plan(
        problem=problem,
        chosen=chosen,
        nearest=nearest,
        frontier=_frontier(priced, problem),
        neighbours=neighbours,
        attention_memory=_attention_memory(nearest, problem),
        expert_memory=expert_memory(
            problem.model,
            nearest.deployment.expert_device,
            slots=nearest.slots,
            instances=nearest.deployment.experts,
            rows=problem.rows,
        ),
        step=_step(nearest, problem),
        plane=plane,
        looked_at=sum(each.violated.size for each in priced),
        feasible=sum(int(each.feasible.sum()) for each in priced),
    )


def rank(point: Point, problem: Problem) -> tuple[float, ...]:
    """Return what the best point has least of: the objective, the other one, TPOT, and, to be definite, the rest."""
    d = point.deployment
    both = (float(d.devices), d.cost_per_hour)
    first, second = both if problem.objective == "devices" else both[::-1]
    return (
        round(first, _DIGITS),
        round(second, _DIGITS),
        _tpot(point, problem),
        d.tensor_parallel,
        d.micro_batches,
        d.attention,
    )


def _best(plane: Plane, problem: Problem) -> Point | None:
    if not plane.feasible.any():
        return None
    keys = _tpots(plane, problem), plane.cost, plane.devices
    if problem.objective == "cost":
        keys = keys[0], keys[2], keys[1]
    at = np.flatnonzero(plane.feasible)
    return _point(plane, int(at[np.lexsort([each.ravel()[at].round(_DIGITS) for each in keys])[0]]), problem)


def _nearest(plane: Plane, problem: Problem) -> Point:
    """Return the point of an infeasible plane whose first violated constraint comes last, of those the least wrong."""
    code = plane.violated.max()
    last = np.flatnonzero(plane.violated == code)
    experts = last % problem.most_experts
    wrong = {CODES[Violated.SLOTS]: -experts, CODES[Violated.DEVICES]: plane.devices.ravel()[last]}
    keys = plane.devices.ravel()[last], wrong.get(int(code), _tpots(plane, problem).ravel()[last])
    return _point(plane, int(last[np.lexsort(keys)[0]]), problem)


def _far(point: Point, problem: Problem) -> tuple[float, float]:
    """How far an infeasible point is from a feasible one."""
    return -CODES[point.violated or Violated.SLOTS], _tpot(point, problem)


def _frontier(priced: Sequence[Plane], problem: Problem) -> tuple[Point, ...]:
    """Return the feasible points of which no other is at most as dear and quicker."""
    of_plane = [np.flatnonzero(plane.feasible) for plane in priced]
    which = np.repeat(np.arange(len(priced)), [len(each) for each in of_plane])
    if not len(which):
        return ()
    at = np.concatenate(of_plane)

    def every(arrays: list[npt.NDArray[np.float64]]) -> npt.NDArray[np.float64]:
        return np.concatenate([each.ravel()[some] for each, some in zip(arrays, of_plane, strict=True)])

    dear = every([plane.devices if problem.objective == "devices" else plane.cost for plane in priced]).round(_DIGITS)
    slow = every([_tpots(plane, problem) for plane in priced])
    order = np.lexsort([at, which, slow, dear])
    quickest = np.minimum.accumulate(slow[order])
    better = np.r_[True, slow[order][1:] < quickest[:-1]]
    return tuple(_point(priced[int(which[i])], int(at[i]), problem) for i in order[better])


def _neighbours(chosen: Point, plane: Plane, bests: Sequence[Point], problem: Problem) -> Iterator[Point]:
    """Yield the points around ``chosen``, then the best of each variant that differs in one choice; why they lose."""
    d = chosen.deployment
    for attention, experts in ((-1, 0), (0, -1), (1, 0), (0, 1), (-1, 1), (1, -1)):
        a, e = d.attention + attention, d.experts + experts
        if 1 <= a <= problem.most_attention and 1 <= e <= problem.most_experts:
            yield _compared(plane.point(a, e, problem), chosen, problem)
    for point in bests:
        if _differences(point, chosen) == 1:
            yield _compared(point, chosen, problem)


def _differences(point: Point, other: Point) -> int:
    """Return in how many choices their variants differ."""
    a, b = point.deployment, other.deployment
    return (
        (a.attention_device.name != b.attention_device.name)
        + (a.expert_device.name != b.expert_device.name)
        + (a.tensor_parallel != b.tensor_parallel)
        + (a.micro_batches != b.micro_batches)
    )


def _compared(point: Point, chosen: Point, problem: Problem) -> Point:
    """Return ``point`` with why it loses against ``chosen``."""
    if point.violated is not None:
        return point
    more = point.deployment.devices - chosen.deployment.devices
    dearer = point.deployment.cost_per_hour - chosen.deployment.cost_per_hour
    slower = 1e3 * (_tpot(point, problem) - _tpot(chosen, problem))
    devices = f"{abs(more)} device{'s' if abs(more) != 1 else ''} {'more' if more > 0 else 'less'}"
    parts = [devices if more else "as many devices"]
    if abs(dearer) > _CENT and (problem.objective == "cost" or not more):
        parts.append(f"{abs(dearer):.2f} per hour {'dearer' if dearer > 0 else 'cheaper'}")
    if abs(slower) < _TELLING_MS:
        parts.append(f"{problem.tail} the same")
    else:
        parts.append(f"{problem.tail} {abs(slower):.1f} ms {'higher' if slower > 0 else 'lower'}")
    return replace(point, why=", ".join(parts))


def _attention_memory(point: Point, problem: Problem) -> MemoryBudget:
    d = point.deployment
    streams = point.batch_tail / d.attention
    return attention_memory(
        problem.model,
        d.attention_device,
        streams=0.0 if np.isnan(streams) else streams,
        context=longest(problem),
        tensor_parallel=d.tensor_parallel,
        rows=problem.token_budget,
    )


def _step(point: Point, problem: Problem) -> StepTime:
    batch = 1.0 if np.isnan(point.batch) else point.batch
    return step_time(
        problem.model,
        problem.profile,
        point.deployment,
        Load(batch=batch, context=longest(problem)),
        a_max=lambda _experts, _batch: 1.0 if np.isnan(point.a_max) else point.a_max,
        modes=problem.modes,
    )


def _point(plane: Plane, flat: int, problem: Problem) -> Point:
    attention, experts = divmod(flat, problem.most_experts)
    return plane.point(attention + 1, experts + 1, problem)


def _tpots(plane: Plane, problem: Problem) -> npt.NDArray[np.float64]:
    """What the SLO is about."""
    return plane.tpot_tail_s if problem.percentile else plane.tpot_s


def _tpot(point: Point, problem: Problem) -> float:
    return point.tpot_tail_s if problem.percentile else point.tpot_s
