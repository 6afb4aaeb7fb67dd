"""All numbers of instances of one variant: kinds of devices, tensor parallelism, micro-batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from janus.core.planning.hardware import Device
from janus.core.planning.memory import attention_memory, expert_memory, least_experts
from janus.core.planning.performance import Deployment
from janus.core.planning.plan import Point, Problem, Violated

_Floats = npt.NDArray[np.float64]
#: Share of TPOT from which on it is said what prompts take of it.
_TELLING = 0.1
#: By number; 0 = none.
_VIOLATED = (None, *Violated)
CODES: dict[Violated, int] = {violated: number for number, violated in enumerate(Violated, 1)}


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
    decode_step_s: _Floats
    a_max: _Floats
    #: TPG.
    tokens_per_device_s: _Floats
    #: Of all devices.
    devices: _Floats
    cost: _Floats
    #: int8: of ``CODES``, what is violated first; 0 = nothing.
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
            decode_step_s=float(self.decode_step_s[at]),
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
            if np.isfinite(self.tpot_s[at]):
                return f"{self.batch_tail[at]:.0f} streams at a time, {attention} x {problem.max_running} may run"
            rate = problem.demand.tokens_s if problem.demand else 0.0
            return f"{rate:.0f} tokens/s are more than {self.batch[at]:.0f} streams, all there is room for, can get"
        if violated is Violated.PREFILL:
            return f"more prompt tokens arrive than steps of {problem.token_budget} tokens have room for"
        if violated is Violated.TPOT:
            tpot = (self.tpot_tail_s if problem.percentile else self.tpot_s)[at]
            prompts = self.tpot_s[at] - self.decode_step_s[at]
            share = f", {_ms(prompts)} of it for prompts" if prompts > _TELLING * tpot else ""
            return f"{problem.tail} {_ms(tpot)} is above {_ms(problem.slo_tpot_s)}{share}"
        if violated is Violated.TTFT:
            return f"TTFT {_ms(self.ttft_s[at])} is above {_ms(problem.slo_ttft_s)}"
        limits = ", ".join(f"{limit} {kind}" for kind, limit in problem.limits.items())
        return f"{self.devices[at]:.0f} devices, of which there are {limits}"


def longest(problem: Problem) -> float:
    """Context that KV cache is reserved for, per stream in the mean."""
    return problem.context if problem.traffic is None else problem.traffic.context


def _gb(nbytes: float) -> str:
    return f"{nbytes / 1e9:.1f} GB"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.1f} ms"
