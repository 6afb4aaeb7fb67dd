"""``janus chaos``: runs scenarios of faults under load, and lists those that there are."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass
from pathlib import Path

import msgspec

from janus.chaos.files import find, load_scenario, shipped
from janus.chaos.report import as_json, lines, unmet
from janus.chaos.run import RunResult
from janus.chaos.scenario import Scenario
from janus.chaos.suite import Plan, run_scenario, run_with_cluster
from janus.config.fields import check_ranges, option
from janus.errors import ConfigError, LaunchError
from janus_cli.console import output, tell
from janus_cli.up import show_launch_error


@dataclass(frozen=True, slots=True, kw_only=True)
class ChaosRunOptions:
    """Break a running cluster as a scenario says, under load, and report what clients noticed.

    Ends with status 1 when the scenario expects less than that.
    """

    scenario: str = option("", help="A file, or the name of one that comes with Janus.", positional=True)
    name: str = option("default", help="Name of the cluster, as given to janus up.")
    up: bool = option(False, help="Start a cluster for it instead, as the scenario describes, and stop it afterwards.")
    model: Path = option(Path("models/janus-tiny"), help="Model directory, with --up.")
    repeat: int = option(1, help="How often.", unit="runs", minimum=1)
    seed: int = option(0, help="What moments and choices at random are drawn from.", minimum=0)
    json: str = option("", help="File that the report is written to.", unit="path", default_text="none")

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChaosListOptions:
    """List the scenarios that come with Janus."""


def run(options: ChaosRunOptions) -> int:
    """Run one scenario; returns 1 when something that it expects is not met."""
    if not options.scenario:
        raise ConfigError("SCENARIO", "is missing", "give a file, or a name that janus chaos list shows")
    scenario = load_scenario(find(options.scenario))
    if scenario.needs_testbed:
        tell(f"{scenario.name} skipped: it cuts network links and needs the testbed; see docs/chaos.md")
        return 0
    plan = Plan(repeat=options.repeat, seed=options.seed)
    runs: list[RunResult] = []

    async def work(name: str) -> None:
        runs.extend(await run_scenario(scenario, name, plan, tell))

    if options.up:
        try:
            run_with_cluster(scenario.cluster, work, model=options.model, name=f"chaos-{scenario.name}", tell=tell)
        except LaunchError as error:
            show_launch_error(error)
            return 1
    else:
        asyncio.run(work(options.name))
    return _report(options, scenario, runs)


def _report(options: ChaosRunOptions, scenario: Scenario, runs: list[RunResult]) -> int:
    for line in lines(scenario, runs):
        print(line)
    if options.json:
        report = {"command": " ".join(["janus", *sys.argv[1:]]), **as_json(scenario, runs, seed=options.seed)}
        text = msgspec.json.format(msgspec.json.encode(report), indent=2).decode()
        Path(options.json).write_text(text + "\n", encoding="utf-8")
    return 1 if unmet(scenario, runs) else 0


def show_list() -> None:
    """Print every scenario with what it does."""
    console = output()
    for name, path in shipped().items():
        scenario = load_scenario(path)
        where = " (needs the testbed)" if scenario.needs_testbed else ""
        console.print(f"[bold]{name:<20}[/bold] {scenario.about}{where}", soft_wrap=True)
