"""``janus status``: what the placement-controller knows, as tables or JSON."""

from __future__ import annotations

import asyncio

import httpx
import msgspec
from rich.console import Console
from rich.table import Table

from janus.cluster.state import RunDirectory
from janus.cluster.status import fetch_status, problems
from janus.errors import JanusError
from janus.messages.control import Heartbeat, Member, StatusReport
from janus_cli.console import output
from janus_cli.options import StatusOptions
from janus_cli.placement_lines import placement_lines
from janus_cli.scaling_lines import scaling_lines

_ROLES = ("controller", "gateway", "attention", "expert")
_NUMBERS = ("running", "waiting", "in flight", "KV", "tokens", "steps", "epoch", "memory", "heard")
_COLOURS = {"ready": "green", "joining": "yellow", "draining": "yellow", "failed": "red"}


def status(options: StatusOptions) -> int:
    """Show the cluster; returns 1 when something in it is not as it should be."""
    ops_url = options.controller_ops.rstrip("/") or RunDirectory(options.name).read().controller_ops
    try:
        report = asyncio.run(fetch_status(ops_url))
    except (httpx.HTTPError, ValueError) as error:
        raise JanusError(f"{ops_url}: the controller does not answer ({error}); see janus doctor") from error
    found = problems(report)
    console = output()
    if options.json:
        print(msgspec.json.format(msgspec.json.encode({"report": report, "problems": found}), indent=2).decode())
        return 1 if found else 0
    console.print(instances_table(report))
    for line in placement_lines(report):
        console.print(line)
    if report.scaling is not None:
        for line in scaling_lines(report.scaling):
            console.print(line)
    if options.layers:
        show_layers(console, report)
    for line in found:
        console.print(f"[yellow]![/yellow] {line}")
    return 1 if found else 0


def instances_table(report: StatusReport) -> Table:
    """One row per instance, also for those that are missing."""
    table = Table(box=None, pad_edge=False)
    for column in ("instance", "node", "address", "state"):
        table.add_column(column, no_wrap=True)
    for column in _NUMBERS:
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("why", overflow="fold", min_width=12)
    for member in sorted(report.view.members, key=lambda member: (_ROLES.index(member.role), member.instance)):
        age = report.heartbeat_age_s.get(member.instance)
        table.add_row(*_row(member, report.heartbeats.get(member.instance), age))
    for name in report.view.missing:
        table.add_row(name, "", "", "[red]missing[/red]", *[""] * len(_NUMBERS), "has not registered")
    return table


def _row(member: Member, heartbeat: Heartbeat | None, age_s: float | None) -> list[str]:
    colour = _COLOURS.get(member.state, "white")
    row = [
        member.instance,
        member.node,
        f"{member.host}:{member.port}",
        f"[{colour}]{member.state}[/{colour}]",
    ]
    if heartbeat is None:
        return [*row, *[""] * len(_NUMBERS), ""]
    model, requests = member.role in ("attention", "expert"), member.role in ("gateway", "attention")
    why = heartbeat.reason
    if heartbeat.unreachable:
        why = "; ".join(filter(None, [why, f"cannot reach {', '.join(heartbeat.unreachable)}"]))
    return [
        *row,
        str(heartbeat.running) if requests else "",
        str(heartbeat.waiting),
        str(heartbeat.in_flight) if model else "",
        f"{heartbeat.kv_usage:.0%}" if member.role == "attention" else "",
        str(heartbeat.tokens),
        str(heartbeat.steps),
        str(heartbeat.loaded_epoch) if member.role == "expert" else "",
        f"{heartbeat.rss_bytes / 2**20:.0f} MiB",
        "" if age_s is None else f"{age_s:.1f} s",
        why,
    ]


def show_layers(console: Console, report: StatusReport) -> None:
    """Activated experts of each attention instance's last step, per MoE layer and expert instance."""
    shown = False
    for source, heartbeat in sorted(report.heartbeats.items()):
        if heartbeat.activated:
            console.print(f"activated experts in the last step of {source}:")
            console.print(layers_table(heartbeat.activated))
            shown = True
    if not shown:
        console.print("no step has been run yet: no activated experts to show")


def layers_table(activated: dict[str, list[int]]) -> Table:
    """Rows are MoE layers, columns the expert instances; then the largest, a_max, and how far the least is below it."""
    table = Table(box=None, pad_edge=False)
    table.add_column("MoE layer", justify="right")
    instances = sorted(activated)
    for instance in instances:
        table.add_column(instance, justify="right")
    table.add_column("a_max", justify="right")
    table.add_column("max - min", justify="right")
    for layer in range(max((len(counts) for counts in activated.values()), default=0)):
        counts = [activated[instance][layer] for instance in instances]
        table.add_row(str(layer), *map(str, counts), str(max(counts)), str(max(counts) - min(counts)))
    return table
