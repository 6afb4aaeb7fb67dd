"""All numbers of instances of one variant - kinds of devices, tensor parallelism, micro-batches - priced at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from janus.core.planning.hardware import Device
from janus.core.planning.memory import attention_memory, expert_memory, least_experts, most_streams
from janus.core.planning.performance import Deployment, Load, step_time
from janus.core.planning.plan import Point, Problem, Violated
from janus.core.planning.steady import steady_state

_Floats = npt.NDArray[np.float64]
#: By number; 0 = none.
_VIOLATED = (None, *Violated)
_CODE = {violated: number for number, violated in enumerate(_VIOLATED)}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plane:
    """A variant over (n_a, n_e): arrays are [n_a - 1, n_e - 1]."""

    attention_device: Device
    expert_device: Device
    tensor_parallel: int
    micro_batches: int
    slots: int
    batch: _Floats
    batch_tail: _Floats
    tpot_s: _Floats
    tpot_tail_s: _Floats
    ttft_s: _Floats
    a_max: _Floats
    #: TPG.
    tokens_per_device_s: _Floats
    #: Of all devices.
    devices: _Floats
    cost: _Floats
    #: int8: number of what is violated, 0 = nothing.
    violated: npt.NDArray[np.int8]

    @property
    def feasible(self) -> npt.NDArray[np.bool_]:
        """Where everything holds."""
        return np.asarray(self.violated == 0)

    def deployment(self, attention: Any, experts: Any) -> Deployment:
        """Return the variant with these numbers of instances."""
        return Deployment(
            attention=attention,
            experts=experts,
            attention_device=self.attention_device,
            expert_device=self.expert_device,
            tensor_parallel=self.tensor_parallel,
            micro_batches=self.micro_batches,
        )

    def point(self, attention: int, experts: int, problem: Problem) -> Point:
        """Return one of its points, with what it violates in words."""
        at = attention - 1, experts - 1
        violated = _VIOLATED[int(self.violated[at])]
        return Point(
            deployment=self.deployment(attention, experts),
            slots=self.slots,
            batch=float(self.batch[at]),
            batch_tail=float(self.batch_tail[at]),
            tpot_s=float(self.tpot_s[at]),
            tpot_tail_s=float(self.tpot_tail_s[at]),
            ttft_s=float(self.ttft_s[at]),
            a_max=float(self.a_max[at]),
            tokens_per_device_s=float(self.tokens_per_device_s[at]),
            violated=violated,
            why="" if violated is None else self._words(violated, attention, experts, problem),
        )

    def _words(self, violated: Violated, attention: int, experts: int, problem: Problem) -> str:
        model, at = problem.model, (attention - 1, experts - 1)
        if violated is Violated.SLOTS:
            held = f"{experts} x {self.slots} slots hold {experts * self.slots} of {model.experts} experts"
            return f"{held}, {least_experts(model, self.slots)} instances hold all"
        if violated is Violated.EXPERT_MEMORY:
            memory = expert_memory(
                model, self.expert_device, slots=max(1, self.slots), instances=experts, rows=problem.rows
            )
            slots = f"{max(1, self.slots)} slots per layer"
            return f"{slots} need {_gb(memory.total)} on {self.expert_device.name}, {_gb(memory.usable)} usable"
        if violated is Violated.ATTENTION_MEMORY:
            streams, context = self.batch_tail[at] / attention, longest(problem)
            memory = attention_memory(
                model,
                self.attention_device,
                streams=streams,
                context=context,
                tensor_parallel=self.tensor_parallel,
                rows=problem.token_budget,
            )
            return (
                f"weights of {_gb(memory.weights)} and {streams:.0f} streams of {context:.0f} tokens need "
                f"{_gb(memory.total)} on {self.attention_device.name}, {_gb(memory.usable)} usable"
            )
        if violated is Violated.THROUGHPUT:
            rate = problem.demand.tokens_s if problem.demand else 0.0
            return f"{rate:.0f} tokens/s are more than {self.batch[at]:.0f} streams, all there is room for, can get"
        if violated is Violated.PREFILL:
            return f"more prompt tokens arrive than steps of {problem.token_budget} tokens have room for"
        if violated is Violated.TPOT:
            tpot = (self.tpot_tail_s if problem.percentile else self.tpot_s)[at]
            return f"{problem.tail} {_ms(tpot)} is above {_ms(problem.slo_tpot_s)}"
        if violated is Violated.TTFT:
            return f"TTFT {_ms(self.ttft_s[at])} is above {_ms(problem.slo_ttft_s)}"
        limits = ", ".join(f"{limit} {kind}" for kind, limit in problem.limits.items())
        return f"{self.devices[at]:.0f} devices, of which there are {limits}"


def planes(problem: Problem) -> Iterator[Plane]:
    """Yield every variant of ``problem``, those with the simplest choices first."""
    for expert_device in problem.expert_kinds:
        for attention_device in problem.attention_kinds:
            for tensor_parallel in problem.tensor_parallel:
                for micro_batches in problem.micro_batches:
                    yield _priced(problem, attention_device, expert_device, tensor_parallel, micro_batches)


def _priced(problem: Problem, attention_device: Device, expert_device: Device, tp: int, parts: int) -> Plane:
    model, slots = problem.model, problem.slots_on(expert_device)
    shape = (problem.most_attention, problem.most_experts)
    a: Any = np.arange(1, shape[0] + 1)[:, None]
    e: Any = np.arange(1, shape[1] + 1)[None, :]
    first = min(least_experts(model, slots) if slots else shape[1] + 1, shape[1] + 1)
    blank = {name: np.full(shape, value) for name, value in _BLANK.items()}
    plane = Plane(
        attention_device=attention_device,
        expert_device=expert_device,
        tensor_parallel=tp,
        micro_batches=parts,
        slots=slots,
        devices=np.broadcast_to(a * tp + e, shape).astype(np.float64),
        cost=a * tp * attention_device.cost_per_hour + e * expert_device.cost_per_hour,
        violated=np.full(shape, _CODE[Violated.SLOTS if slots else Violated.EXPERT_MEMORY], dtype=np.int8),
        **blank,
    )
    if first > shape[1]:
        return plane
    there = np.s_[:, first - 1 :]
    deployment = plane.deployment(a, e[there])
    found = _streams(problem, deployment, slots)
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
    "a_max": np.nan,
    "tokens_per_device_s": 0.0,
}


def _streams(problem: Problem, deployment: Deployment, slots: int) -> dict[str, Any]:
    """Price a plane: the arrays of ``Plane``, ``room`` for streams, and how much of their room prompts use."""
    model, profile, demand = problem.model, problem.profile, problem.demand
    table, attention, device = problem.a_max(slots), deployment.attention, deployment.attention_device
    room = most_streams(
        model,
        device,
        context=longest(problem),
        tensor_parallel=deployment.tensor_parallel,
        rows=problem.token_budget,
    )
    room = min(room, problem.max_running) if problem.max_running else room
    if demand is None:
        load = Load(batch=problem.batch, context=problem.context)
        step = step_time(model, profile, deployment, load, a_max=table, modes=problem.modes)
        return {
            "batch": problem.batch,
            "batch_tail": problem.batch,
            "tpot_s": step.total_s,
            "tpot_tail_s": step.total_s,
            "ttft_s": 0.0,
            "a_max": step.a_max,
            "tokens_per_device_s": problem.batch / step.total_s / deployment.devices,
            "room": room * attention,
            "prefill_use": 0.0,
        }
    state = steady_state(
        model,
        profile,
        deployment,
        demand,
        a_max=table,
        most_streams=room * attention,
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
        "a_max": state.step.a_max,
        "tokens_per_device_s": problem.traffic.tokens_s / deployment.devices,
        "room": room * attention,
        "prefill_use": state.prefill_use,
    }


def _violations(problem: Problem, plane: Plane, found: dict[str, Any], there: Any) -> Any:
    """Return the number of the first constraint that does not hold, 0 where all do."""
    tpot = (plane.tpot_tail_s if problem.percentile else plane.tpot_s)[there]
    memory = expert_memory(problem.model, plane.expert_device, slots=plane.slots, instances=1, rows=problem.rows)
    nothing = np.zeros(tpot.shape, dtype=bool)
    settles, room = np.isfinite(tpot), found["room"]
    conditions = {
        Violated.EXPERT_MEMORY: nothing | (not memory.fits),
        # A batch that is given must fit; of a rate, the streams that are there at the percentile.
        Violated.ATTENTION_MEMORY: (room < 1) | (settles & (plane.batch_tail[there] > room)),
        Violated.THROUGHPUT: ~settles,
        Violated.PREFILL: nothing | (found["prefill_use"] >= 1),
        Violated.TPOT: tpot > problem.slo_tpot_s,
        Violated.TTFT: plane.ttft_s[there] > (problem.slo_ttft_s or np.inf),
        Violated.DEVICES: _too_many(problem, plane)[there],
    }
    return np.select(list(conditions.values()), [_CODE[violated] for violated in conditions], default=0)


def _too_many(problem: Problem, plane: Plane) -> Any:
    a, e = plane.attention_device.name, plane.expert_device.name
    experts = np.arange(1, problem.most_experts + 1)[None, :]
    attention = np.arange(1, problem.most_attention + 1)[:, None] * plane.tensor_parallel
    too_many = np.zeros(plane.devices.shape, dtype=bool)
    for kind, limit in problem.limits.items():
        too_many |= attention * (kind == a) + experts * (kind == e) > limit
    return too_many


def longest(problem: Problem) -> float:
    """Context that KV cache is reserved for, per stream in the mean."""
    return problem.context if problem.traffic is None else problem.traffic.context


def _gb(nbytes: float) -> str:
    return f"{nbytes / 1e9:.1f} GB"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.1f} ms"
