"""Prices every number of instances of every variant, all of a variant at once, and says which constraint fails."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from janus.core.planning.hardware import Device
from janus.core.planning.memory import expert_memory, least_experts, most_streams
from janus.core.planning.performance import AMax, Deployment, Load, step_time
from janus.core.planning.plan import Problem, Violated
from janus.core.planning.plane import CODES, Plane, longest
from janus.core.planning.steady import steady_state


def planes(problem: Problem) -> Iterator[Plane]:
    """Yield every variant of ``problem``, those with the simplest choices first."""
    tables = {slots: problem.a_max(slots) for slots in _numbers_of_slots(problem)}
    for expert_device in problem.expert_kinds:
        for attention_device in problem.attention_kinds:
            for tensor_parallel in problem.tensor_parallel:
                for micro_batches in problem.micro_batches:
                    blank = _blank(problem, attention_device, expert_device, tensor_parallel, micro_batches)
                    yield _priced(problem, blank, tables.get(blank.slots))


def _numbers_of_slots(problem: Problem) -> set[int]:
    """Return every C with which enough experts can be held."""
    each = {problem.slots_on(device) for device in problem.expert_kinds}
    return {slots for slots in each if slots * problem.most_experts >= problem.model.experts}


def _blank(problem: Problem, attention_device: Device, expert_device: Device, tp: int, parts: int) -> Plane:
    """Return the plane with its prices alone: nothing holds all experts."""
    slots = problem.slots_on(expert_device)
    shape = (problem.most_attention, problem.most_experts)
    a: Any = np.arange(1, shape[0] + 1)[:, None]
    e: Any = np.arange(1, shape[1] + 1)[None, :]
    blank = {name: np.full(shape, value) for name, value in _BLANK.items()}
    return Plane(
        attention_device=attention_device,
        expert_device=expert_device,
        tensor_parallel=tp,
        micro_batches=parts,
        slots=slots,
        devices=np.broadcast_to(a * tp + e, shape).astype(np.float64),
        cost=a * tp * attention_device.cost_per_hour + e * expert_device.cost_per_hour,
        violated=np.full(shape, CODES[Violated.SLOTS if slots else Violated.EXPERT_MEMORY], dtype=np.int8),
        **blank,
    )


def _priced(problem: Problem, plane: Plane, a_max: AMax | None) -> Plane:
    """Fill in what has a table of a_max: from as many expert instances on as hold all experts."""
    if a_max is None:
        return plane
    first = least_experts(problem.model, plane.slots)
    there = np.s_[:, first - 1 :]
    a: Any = np.arange(1, problem.most_attention + 1)[:, None]
    e: Any = np.arange(first, problem.most_experts + 1)[None, :]
    found = _settled(problem, plane.deployment(a, e), a_max)
    for name in _BLANK:
        getattr(plane, name)[there] = found[name]
    plane.violated[there] = _violations(problem, plane, found, there)
    return plane


#: What is known of points that cannot be priced.
_BLANK = {
    "batch": np.nan,
    "batch_tail": np.nan,
    "tpot_s": np.inf,
    "tpot_tail_s": np.inf,
    "ttft_s": np.inf,
    "decode_step_s": np.inf,
    "a_max": np.nan,
    "tokens_per_device_s": 0.0,
}


def _settled(problem: Problem, deployment: Deployment, a_max: AMax) -> dict[str, Any]:
    """Return the arrays of ``Plane``; ``room`` for streams in memory and in batches; and how much of it prompts use."""
    model, profile, demand = problem.model, problem.profile, problem.demand
    attention, device = deployment.attention, deployment.attention_device
    room = most_streams(
        model,
        device,
        context=longest(problem),
        tensor_parallel=deployment.tensor_parallel,
        rows=problem.token_budget,
    )
    running = problem.max_running or room
    if demand is None:
        load = Load(batch=problem.batch, context=problem.context)
        step = step_time(model, profile, deployment, load, a_max=a_max, modes=problem.modes)
        return {
            "batch": problem.batch,
            "batch_tail": problem.batch,
            "tpot_s": step.total_s,
            "tpot_tail_s": step.total_s,
            "ttft_s": 0.0,
            "decode_step_s": step.total_s,
            "a_max": step.a_max,
            "tokens_per_device_s": problem.batch / step.total_s / deployment.devices,
            "room": room * attention,
            "running": running * attention,
            "prefill_use": 0.0,
        }
    state = steady_state(
        model,
        profile,
        deployment,
        demand,
        a_max=a_max,
        most_streams=min(room, running) * attention,
        percentile=problem.percentile or 99.0,
        token_budget=problem.token_budget,
        modes=problem.modes,
    )
    assert problem.traffic is not None
    return {
        "batch": state.batch,
        "batch_tail": state.batch_tail,
        "tpot_s": state.tpot_s,
        "tpot_tail_s": state.tpot_tail_s,
        "ttft_s": state.ttft_s,
        "decode_step_s": state.step.total_s,
        "a_max": state.step.a_max,
        "tokens_per_device_s": problem.traffic.tokens_s / deployment.devices,
        "room": room * attention,
        "running": running * attention,
        "prefill_use": state.prefill_use,
    }


def _violations(problem: Problem, plane: Plane, found: dict[str, Any], there: Any) -> Any:
    """Return the number of the first constraint that does not hold, 0 where all do."""
    tpot = (plane.tpot_tail_s if problem.percentile else plane.tpot_s)[there]
    memory = expert_memory(problem.model, plane.expert_device, slots=plane.slots, instances=1, rows=problem.rows)
    nothing = np.zeros(tpot.shape, dtype=bool)
    settles, room, streams = np.isfinite(tpot), found["room"], plane.batch_tail[there]
    conditions = {
        Violated.EXPERT_MEMORY: nothing | (not memory.fits),
        # A batch that is given must fit; of a rate, the streams that are there at the percentile.
        Violated.ATTENTION_MEMORY: (room < 1) | (settles & (streams > room)),
        Violated.THROUGHPUT: ~settles | (streams > found["running"]),
        Violated.PREFILL: nothing | (found["prefill_use"] >= 1),
        Violated.TPOT: tpot > problem.slo_tpot_s,
        Violated.TTFT: plane.ttft_s[there] > (problem.slo_ttft_s or np.inf),
        Violated.DEVICES: _too_many(problem, plane)[there],
    }
    return np.select(list(conditions.values()), [CODES[violated] for violated in conditions], default=0)


def _too_many(problem: Problem, plane: Plane) -> Any:
    a, e = plane.attention_device.name, plane.expert_device.name
    experts = np.arange(1, problem.most_experts + 1)[None, :]
    attention = np.arange(1, problem.most_attention + 1)[:, None] * plane.tensor_parallel
    too_many = np.zeros(plane.devices.shape, dtype=bool)
    for kind, limit in problem.limits.items():
        too_many |= attention * (kind == a) + experts * (kind == e) > limit
    return too_many
