"""Many scenarios on few clusters: those that need the same cluster share one, until one of them breaks it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.chaos.nodes import Nodes, nodes
from benchmarks.testbed import unavailable

from janus.chaos.report import as_json
from janus.chaos.scenario import ClusterNeeds, Scenario
from janus.chaos.suite import Plan, run_scenario, with_cluster
from janus.cluster.local import LocalLauncher
from janus.errors import JanusError

#: Scenario -> its report, or why there is none.
Reports = dict[str, dict[str, Any]]


@dataclass(slots=True, kw_only=True)
class Campaign:
    """``record`` is called with a scenario's report as soon as there is one: a campaign takes long."""

    model: Path
    plans: dict[str, Plan]
    tell: Callable[[str], None]
    record: Callable[[Reports], None]
    reports: Reports = field(default_factory=dict)

    def run(self, scenarios: list[Scenario]) -> Reports:
        """Run each scenario as often as its plan says."""
        here = [each for each in scenarios if not each.needs_testbed]
        for needs, group in _grouped(here):
            while left := self._left(group):
                asyncio.run(self._on_one_cluster(needs, left, None))
        between = [each for each in scenarios if each.needs_testbed]
        if between and (reason := unavailable()) is not None:
            for scenario in between:
                self._put(scenario, {"skipped": f"needs the testbed: {reason}"})
        for needs, group in _grouped(self._left(between)):
            while left := self._left(group):
                with nodes(needs) as network:
                    asyncio.run(self._on_one_cluster(needs, left, network))
        return self.reports

    def _left(self, scenarios: list[Scenario]) -> list[Scenario]:
        return [each for each in scenarios if each.name not in self.reports]

    async def _on_one_cluster(self, needs: ClusterNeeds, scenarios: list[Scenario], network: Nodes | None) -> None:
        async def work(name: str) -> None:
            for scenario in scenarios:
                if not await self._run(scenario, name, network):
                    return  # whatever is wrong with this cluster, the next scenario gets another one

        launcher_type = LocalLauncher if network is None else network.launcher
        try:
            await with_cluster(needs, work, model=self.model, name="chaos", tell=self.tell, launcher_type=launcher_type)
        except JanusError as error:
            # The cluster did not start, or did not stop: the first scenario without a report is the one to blame.
            for scenario in scenarios:
                if scenario.name not in self.reports:
                    self._put(scenario, {"runs": 0, "unmet": [str(error)]})
                    return
            self.tell(f"after {scenarios[-1].name}: {error}")

    async def _run(self, scenario: Scenario, name: str, network: Nodes | None) -> bool:
        plan, runs = self.plans[scenario.name], []
        problem = ""
        try:
            await run_scenario(scenario, name, plan, self.tell, on_run=runs.append, network=network)
        except JanusError as error:
            problem = f"run {len(runs) + 1}: {error}"
            self.tell(f"{scenario.name}: {problem}")
        report = as_json(scenario, runs, seed=plan.seed)
        report["unmet"] += [problem] * bool(problem)
        self._put(scenario, report)
        return not problem

    def _put(self, scenario: Scenario, report: dict[str, Any]) -> None:
        self.reports[scenario.name] = report
        self.record({scenario.name: report})


def _grouped(scenarios: list[Scenario]) -> Iterator[tuple[ClusterNeeds, list[Scenario]]]:
    """Scenarios by the cluster that they need, each group where its first one stands."""
    left = list(scenarios)
    while left:
        needs = left[0].cluster
        yield needs, [each for each in left if each.cluster == needs]
        left = [each for each in left if each.cluster != needs]
