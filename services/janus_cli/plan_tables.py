"""A plan as tables for people, and as data for programs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from janus.core.planning.activation import AMaxTable
from janus.core.planning.memory import MemoryBudget
from janus.core.planning.plan import Plan, Point, Problem

#: Rows of the frontier that are shown; all are in the JSON.
_ROWS = 12


def show(plan: Plan, tables: Mapping[int, AMaxTable], console: Console) -> None:
    """Print the answer, its memory, the frontier, and why the neighbours lose."""
    problem, point = plan.problem, plan.nearest
    profile = problem.profile
    kind = "measured" if profile.kind == "measured" else "published figures, nothing measured"
    console.print(f"[bold]{problem.model.name}[/] on {profile.name} ({kind})")
    ttft = f", TTFT of at most {_ms(problem.slo_ttft_s)}" if problem.slo_ttft_s else ""
    console.print(f"{question(problem)}; {problem.tail} of at most {_ms(problem.slo_tpot_s)}{ttft}")
    if point.slots in tables:
        table = tables[point.slots]
        console.print(f"a_max: {table.about}; standard error at most {table.error.max():.2f}")
    console.print()
    if plan.chosen is None:
        console.print(f"[bold]Nothing will do[/]: {plan.looked_at} points were looked at.")
        reason = f"{point.violated}: {point.why}" if point.violated else point.why
        console.print(f"Nearest is {point.name}, which fails on {reason}.")
    else:
        _show_chosen(point, problem, console)
        step = plan.step
        hidden = f", {_ms(step.hidden_s)} of that at the same time" if step.hidden_s > 0 else ""
        waiting = f"; and {_ms(step.waiting_s)} of waiting for the host's cores" if step.waiting_s > 0 else ""
        console.print(
            f"a step without prompts: attention {_ms(step.attention_s)}, exchange {_ms(step.exchange_s)} "
            f"({step.exchange}), experts {_ms(step.experts_s)}, else {_ms(step.other_s)}{hidden}{waiting}"
        )
    console.print()
    console.print(_memory(plan))
    console.print(f"a token's KV cache takes {problem.model.kv_bytes_per_token / 1e3:,.1f} kB")
    if plan.frontier:
        console.print()
        console.print(_points("Feasible frontier", plan.frontier[:_ROWS], problem))
        if len(plan.frontier) > _ROWS:
            console.print(f"and {len(plan.frontier) - _ROWS} more, with --json")
    if plan.neighbours:
        console.print()
        console.print(_points("Why the neighbours lose", plan.neighbours, problem, why=True))


def question(problem: Problem) -> str:
    """The load in words."""
    traffic = problem.traffic
    if traffic is None:
        return f"{problem.batch:g} streams of {problem.context:.0f} tokens, always"
    bursts = f", burstiness {traffic.arrival_cv:.1f}" if abs(traffic.arrival_cv - 1) > 0.05 else ""
    return (
        f"{traffic.requests_s:.3g} requests/s of {traffic.prompt_tokens:.0f} + {traffic.output_tokens:.0f} tokens"
        f"{bursts}, headroom {problem.headroom:.0%}"
    )


def as_dict(plan: Plan, tables: Mapping[int, AMaxTable]) -> dict[str, Any]:
    """Return the plan as JSON takes it; what is not finite is null."""
    problem = plan.problem
    traffic = problem.traffic
    found = {
        "model": asdict(problem.model),
        "hardware": {"profile": problem.profile.name, "kind": problem.profile.kind},
        "question": {
            "slo_tpot_s": problem.slo_tpot_s,
            "percentile": problem.percentile,
            "slo_ttft_s": problem.slo_ttft_s or None,
            "traffic": asdict(traffic) if traffic else None,
            "headroom": problem.headroom if traffic else None,
            "batch": problem.batch or None,
            "context": traffic.context if traffic else problem.context,
            "objective": problem.objective,
        },
        "chosen": _point(plan.chosen) if plan.chosen else None,
        "nearest": None if plan.chosen else _point(plan.nearest),
        "step": asdict(plan.step) | {"total_s": plan.step.total_s},
        "memory": {"attention": _budget(plan.attention_memory), "experts": _budget(plan.expert_memory)},
        "kv_bytes_per_token": plan.problem.model.kv_bytes_per_token,
        "frontier": [_point(point) for point in plan.frontier],
        "neighbours": [_point(point) for point in plan.neighbours],
        "looked_at": plan.looked_at,
        "feasible": plan.feasible,
        "a_max": [
            {
                "slots": table.slots,
                "about": table.about,
                "instances": list(table.instances),
                "batches": list(table.batches),
                "mean": table.mean.round(4).tolist(),
                "standard_error": table.error.round(4).tolist(),
                "bound": table.bound.round(4).tolist(),
            }
            for table in tables.values()
        ],
    }
    finite: dict[str, Any] = _finite(found)
    return finite


def _show_chosen(point: Point, problem: Problem, console: Console) -> None:
    d = point.deployment
    kinds = f"{d.attention * d.tensor_parallel} {d.attention_device.name} + {d.experts} {d.expert_device.name}"
    console.print(
        f"[bold]{point.name}[/]: {d.attention} attention and {d.experts} expert instances, "
        f"{d.devices} devices ({kinds}), {d.cost_per_hour:.2f} per hour"
    )
    console.print(
        f"{point.slots} slots per expert instance and layer, {_count(d.micro_batches, 'micro-batch', 'es')}, "
        f"a_max {point.a_max:.1f}"
    )
    if problem.traffic is None:
        console.print(f"TPOT {_ms(point.tpot_s)}")
    else:
        tail = problem.percentile or 99
        console.print(
            f"with the headroom: TPOT {_ms(point.tpot_s)} in the mean "
            f"({_ms(point.tpot_s - point.decode_step_s)} of it for prompts), P{tail:g} {_ms(point.tpot_tail_s)}; "
            f"TTFT {_ms(point.ttft_s)}; {point.batch:.0f} streams, P{tail:g} {point.batch_tail:.0f}"
        )
    console.print(f"TPG: {point.tokens_per_device_s:.1f} output tokens/s per device")


def _memory(plan: Plan) -> Table:
    table = Table(title=f"Memory per device of {plan.nearest.name}, GB", title_justify="left", box=None, pad_edge=False)
    for column in ("", "weights", "of these redundant", "KV cache", "buffers", "total", "usable", "of"):
        table.add_column(column, justify="left" if not column else "right", no_wrap=True)
    for name, budget in (("attention", plan.attention_memory), ("experts", plan.expert_memory)):
        numbers = (budget.weights, budget.redundant, budget.kv, budget.buffers, budget.total, budget.usable)
        table.add_row(name, *(f"{number / 1e9:.1f}" for number in numbers), f"{budget.memory / 1e9:.1f}")
    return table


def _points(title: str, points: tuple[Point, ...], problem: Problem, *, why: bool = False) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    tail = f"P{problem.percentile or 99:g} ms"
    columns = ["", "devices", "per hour", "micro", "TPOT ms", *([tail] if problem.traffic else []), "TPG"]
    for column in columns:
        table.add_column(column, justify="left" if not column else "right", no_wrap=True)
    mixed = (
        len({p.deployment.attention_device.name for p in points} | {p.deployment.expert_device.name for p in points})
        > 1
    )
    if mixed:
        table.add_column("kinds", no_wrap=True)
    if why:
        table.add_column("why not")
    for point in points:
        d = point.deployment
        known = math.isfinite(point.tpot_s)
        cells = [point.name, f"{d.devices}", f"{d.cost_per_hour:.2f}", f"{d.micro_batches}"]
        cells.append(f"{1e3 * point.tpot_s:.1f}" if known else "-")
        cells += [f"{1e3 * point.tpot_tail_s:.1f}" if known else "-"] if problem.traffic else []
        cells.append(f"{point.tokens_per_device_s:.1f}" if known else "-")
        cells += [f"{d.attention_device.name} + {d.expert_device.name}"] if mixed else []
        cells += [f"{point.violated}: {point.why}" if point.violated else point.why] if why else []
        table.add_row(*cells)
    return table


def _point(point: Point) -> dict[str, Any]:
    d = point.deployment
    return {
        "name": point.name,
        "attention": d.attention,
        "experts": d.experts,
        "attention_device": d.attention_device.name,
        "expert_device": d.expert_device.name,
        "tensor_parallel": d.tensor_parallel,
        "micro_batches": d.micro_batches,
        "devices": d.devices,
        "cost_per_hour": d.cost_per_hour,
        "slots": point.slots,
        "batch": point.batch,
        "batch_tail": point.batch_tail,
        "tpot_s": point.tpot_s,
        "tpot_tail_s": point.tpot_tail_s,
        "ttft_s": point.ttft_s,
        "decode_step_s": point.decode_step_s,
        "a_max": point.a_max,
        "tokens_per_device_s": point.tokens_per_device_s,
        "violated": point.violated.value if point.violated else None,
        "why": point.why,
    }


def _budget(budget: MemoryBudget) -> dict[str, float]:
    return asdict(budget) | {"total": budget.total}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.1f} ms" if math.isfinite(seconds) else "unbounded"


def _count(number: int, word: str, plural: str) -> str:
    return f"{number} {word}{plural if number != 1 else ''}"
