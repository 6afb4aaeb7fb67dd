"""How ``janus simulate`` shows what came out."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from janus.simulation.config import Slo
from janus.simulation.report import Report, Spread
from janus.simulation.simulator import Simulation

#: Decisions that are listed at most.
_DECISIONS = 20


def show(simulation: Simulation, report: Report, console: Console, *, scaled_by: str = "") -> None:
    """Print what came out of ``simulation``; ``scaled_by``: the autoscaler's expectations, "learned" or a profile."""
    config, workload, slo, decisions = simulation.config, simulation.workload, simulation.slo, simulation.decisions
    deployment = config.deployment(config.attention, config.experts)
    devices = sorted({deployment.attention_device.name, deployment.expert_device.name})
    console.print(
        f"simulated: {config.model.name} on {config.attention}A{config.experts}E of {', '.join(devices)}, "
        f"{config.slots} slots; {workload.name}: {report.requests} requests in {report.duration_s:g} s"
    )
    if workload.left_out:
        console.print(f"{workload.left_out} records of failed requests were left out")
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column()
    for name, value in _rows(report, slo):
        table.add_row(name, value)
    console.print(table)
    for struck in report.faults:
        console.print(f"{struck.at_s:10.1f} s  died: {', '.join(struck.instances) or 'nobody was there'}")
    if scaled_by:
        by = "what it learned" if scaled_by == "learned" else f"profile {scaled_by}"
        console.print(f"autoscaled by {by}: {len(decisions)} changes")
    for decision in decisions[:_DECISIONS]:
        console.print(f"{decision.at:10.1f} s  {decision.present} -> {decision.wanted}: {decision.why}")
    if len(decisions) > _DECISIONS:
        console.print(f"and {len(decisions) - _DECISIONS} more decisions")


def _rows(report: Report, slo: Slo) -> list[tuple[str, str]]:
    outcomes = ", ".join(f"{count} {code}" for code, count in report.outcomes.items()) or "none"
    hours = " + ".join(f"{value:.3g} {role}" for role, value in report.device_hours.items())
    rows = [
        ("requests", f"{outcomes}; {report.resumed} went on elsewhere"),
        ("TTFT", _spread(report.ttft_s)),
        ("TPOT", _spread(report.tpot_s)),
        ("throughput", f"{report.throughput_tokens_s:,.0f} output tokens/s, {report.in_flight:.1f} requests in flight"),
        ("device-hours", f"{sum(report.device_hours.values()):.3g} ({hours}), cost {report.cost:.3g}"),
        ("TPG", f"{report.tokens_per_device_s:.1f} output tokens/s and device"),
    ]
    if slo.tpot_s or slo.ttft_s:
        wanted = [f"{name} {1e3 * value:g} ms" for name, value in (("TPOT", slo.tpot_s), ("TTFT", slo.ttft_s)) if value]
        goodput = f"{report.goodput_requests_s:.2f} requests/s, {report.goodput_tokens_s:,.0f} output tokens/s"
        rows.append(("SLO", f"{report.slo_attainment:.2%} of requests within {', '.join(wanted)}; goodput {goodput}"))
    return rows


def _spread(spread: Spread) -> str:
    parts = (("mean", spread.mean), ("p50", spread.p50), ("p90", spread.p90), ("p99", spread.p99))
    return ", ".join(f"{name} {1e3 * value:.2f} ms" for name, value in parts)
