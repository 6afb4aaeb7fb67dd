"""Where the microseconds of a decode step go: differences of the counters that the instances keep themselves."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.serving.workload import Run

Counters = Mapping[str, Mapping[str, Mapping[str, int]]]

#: Fields of ``StepTimes`` that are parts of a step by themselves.
_STEP_PARTS = ("plan", "embed", "attention", "gate", "dense", "logits", "sample", "publish")


def step_breakdown(run: Run) -> dict[str, float]:
    """Return microseconds per step by part; the parts from ``plan`` to ``rest`` add up to ``step``.

    ``step`` is the time between two looks at the counters divided by the steps between them, so ``rest`` is what no
    counter covers: the event loop between two steps and the control thread holding the interpreter there. ``wait`` is
    the time for answers less ``expert_compute``: wires, wake-ups, the expert instance's queue and its reply, of which
    ``of_wait_*`` show the last two (mean over expert instances). A shared expert computes within that time too, as
    ``of_wait_shared`` shows; where experts are in the same process it is a part by itself, ``shared``.
    """
    assert run.before is not None and run.after is not None
    step = _difference(run.before, run.after, "step", "attention")
    exchange = _difference(run.before, run.after, "exchange", "attention")
    expert = _difference(run.before, run.after, "expert", "expert")
    steps = max(1, step.get("steps", 0))

    def per_step(value: int) -> float:
        return round(value / steps / 1e3, 1)

    parts = {name: per_step(step.get(f"{name}_ns", 0)) for name in _STEP_PARTS}
    shared = step.get("shared_ns", 0)
    moe = step.get("dispatch_ns", 0) + shared + step.get("combine_ns", 0)
    if exchange:
        parts["schedule"] = per_step(exchange["schedule_ns"])
        parts["pack"] = per_step(exchange["pack_ns"] - exchange["send_ns"])
        parts["send"] = per_step(exchange["send_ns"])
        parts["expert_compute"] = per_step(exchange["expert_ns"])
        parts["wait"] = per_step(exchange["wait_ns"] - exchange["expert_ns"])
        parts["combine"] = per_step(moe - sum(exchange[name] for name in ("schedule_ns", "pack_ns", "wait_ns")))
    else:
        parts["expert_compute"] = per_step(step.get("dispatch_ns", 0))
        parts["combine"] = per_step(step.get("combine_ns", 0))
        if shared:
            parts["shared"] = per_step(shared)
    total = round(run.between_s * 1e6 / steps, 1)
    parts["rest"] = round(total - sum(parts.values()), 1)
    parts["step"] = total
    if exchange and shared:
        parts["of_wait_shared"] = per_step(shared)
    if expert:
        instances = sum(1 for name in run.after if name.startswith("expert"))
        parts["of_wait_expert_queue"] = per_step(expert["queued_ns"] // instances)
        parts["of_wait_expert_reply"] = per_step(expert["reply_ns"] // instances)
    return parts


def _difference(before: Counters, after: Counters, kind: str, role: str) -> dict[str, int]:
    """Sum over the instances of ``role`` of what their counters grew by."""
    total: dict[str, int] = {}
    for name, counters in after.items():
        if not name.startswith(role):
            continue
        for field, value in counters[kind].items():
            total[field] = total.get(field, 0) + value - before[name][kind].get(field, 0)
    return total
