"""Runs scenarios on a cluster that is there, or on one of their own."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from janus.chaos.control import SocketControl
from janus.chaos.run import Runner, RunResult
from janus.chaos.scenario import ClusterNeeds, Scenario
from janus.chaos.steps import Network
from janus.chaos.target import Target
from janus.cluster.groups import one_error
from janus.cluster.local import LocalLauncher
from janus.cluster.state import RunDirectory
from janus.cluster.supervisor import Supervisor
from janus.cluster.up import run_up
from janus.config import UpOptions
from janus.config.fields import option_fields
from janus.config.sources import resolve
from janus.errors import ConfigError

#: Called with what is worth a line while runs go on.
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How often, and from which seed every moment and every choice is drawn."""

    repeat: int = 1
    seed: int = 0

    def draw(self, scenario: Scenario, run: int) -> random.Random:
        """The source of chance of one run; the same for the same seed, scenario and run."""
        return random.Random(f"{self.seed}/{scenario.name}/{run}")


async def run_scenario(
    scenario: Scenario,
    name: str,
    plan: Plan,
    tell: Tell,
    *,
    on_run: Callable[[RunResult], None] = lambda _: None,
    network: Network | None = None,
) -> list[RunResult]:
    """Run it on the cluster ``name`` of this machine; ``on_run`` gets each run as it is over.

    Raises:
        ConfigError: no cluster of that name runs, or it is smaller than the scenario needs.
        JanusError: it does not become whole after a run.
    """
    runner = Runner(scenario, Target(RunDirectory(name)), SocketControl(name), network)
    await runner.prepare()
    results = []
    for index in range(plan.repeat):
        with one_error():
            results.append(await runner.run(plan.draw(scenario, index)))
        on_run(results[-1])
        tell(f"{scenario.name} {index + 1}/{plan.repeat}: {told(results[-1])}")
    return results


def told(result: RunResult) -> str:
    """One run in a line."""
    steps = ", ".join(f"{step.do} {step.target}".strip() for step in result.steps)
    wrong = {name: getattr(result, name) for name in ("lost", "repeated", "changed", "client_errors")}
    problems = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in wrong.items() if count)
    stall = 1e3 * max(result.stalls_s, default=0.0)
    return (
        f"{steps}; {problems or 'every token right'}; longest stall {stall:.0f} ms; whole after {result.whole_s:.1f} s"
    )


def up_options(needs: ClusterNeeds, *, model: Path, name: str) -> UpOptions:
    """The cluster that a scenario describes. Raises ConfigError for an option that ``janus up`` does not have."""
    # As fields of the class: ``drain_timeout_s`` is ``drain-timeout`` to users.
    fields = {item.key: item.name for item in option_fields(UpOptions)}
    given = {}
    for key, value in needs.options.items():
        if key.replace("-", "_") not in fields:
            raise ConfigError(f"cluster.options.{key}", "is no option of janus up", "see janus up --help")
        given[fields[key.replace("-", "_")]] = str(value)
    sizes = {field: str(getattr(needs, field)) for field in ("attention", "experts", "slots_per_instance")}
    quiet = {"port": "0", "log_level": "info"}
    return resolve(UpOptions, cli={**quiet, **sizes, **given, "model": str(model), "name": name}, environ={})


async def with_cluster(
    needs: ClusterNeeds,
    work: Callable[[str], Awaitable[None]],
    *,
    model: Path,
    name: str,
    tell: Tell,
    launcher_type: Callable[..., LocalLauncher] = LocalLauncher,
) -> None:
    """Start the cluster that ``needs`` describes, call ``work`` with its name, and stop it.

    It begins without what an earlier one of its name has learned. ``launcher_type``: as for ``run_up``.

    Raises:
        LaunchError: an instance did not start.
    """

    async def session(_: Supervisor) -> None:
        await work(name)

    for kept in RunDirectory(name).path.glob("activations-*"):
        kept.unlink()  # what a cluster before it had learned would decide its first placement
    os.environ.update(needs.environment)  # what instances are started with
    try:
        options = up_options(needs, model=model, name=name)
        await run_up(options, config=None, tell=tell, session=session, launcher_type=launcher_type)
    finally:
        for variable in needs.environment:
            os.environ.pop(variable, None)


def run_with_cluster(
    needs: ClusterNeeds, work: Callable[[str], Awaitable[None]], *, model: Path, name: str, tell: Tell
) -> None:
    """As ``with_cluster``, from code without a loop."""
    asyncio.run(with_cluster(needs, work, model=model, name=name, tell=tell))
