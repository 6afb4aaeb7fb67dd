"""``janus doctor``: every check, as lines for people or JSON for programs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

import msgspec
from rich.markup import escape

from janus.cluster.checks import Finding
from janus.cluster.checks.model import check_model
from janus.cluster.checks.network import check_peer, check_port
from janus.cluster.checks.system import (
    check_compiler,
    check_cores,
    check_gpu,
    check_node_memory,
    check_open_files,
    check_python,
    check_shared_memory,
    check_torch,
)
from janus.cluster.checks.ucx import check_ucx
from janus_cli.console import output
from janus_cli.options import DoctorOptions

_MARKS = {"ok": "[green]ok[/green]     ", "warning": "[yellow]warning[/yellow]", "problem": "[red]problem[/red]"}


def doctor(options: DoctorOptions) -> int:
    """Run every check; returns 1 when one found a problem."""
    console = output()
    findings = []
    for finding in run_checks(options):
        findings.append(finding)
        if not options.json:
            console.print(f"{_MARKS[finding.level]}  {finding.check:<14} {escape(finding.detail)}")
            if finding.remedy:
                console.print(f"{'':<9}{'':<14} -> {escape(finding.remedy)}")
    problems = sum(finding.level == "problem" for finding in findings)
    if options.json:
        print(msgspec.json.format(msgspec.json.encode([asdict(finding) for finding in findings]), indent=2).decode())
    else:
        console.print("nothing keeps a start from working" if not problems else f"{problems} to solve before a start")
    return 1 if problems else 0


def run_checks(options: DoctorOptions) -> Iterator[Finding]:
    """Yield the findings, the quick ones first."""
    yield check_python()
    yield check_torch()
    yield from check_ucx()
    yield check_gpu()
    yield check_compiler()
    yield check_shared_memory()
    yield check_node_memory()
    yield check_open_files()
    yield check_cores(options.attention + options.experts)
    yield check_port(options.host, options.port)
    for name, address in options.addresses():
        yield check_peer(name, address)
    if options.model is not None:
        yield from check_model(options.model, dtype=options.dtype, attention=options.attention, experts=options.experts)
