"""Many scenarios on few clusters: those that need the same cluster share one, until one of them breaks it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.testbed import unavailable

from janus.chaos.report import as_json
from janus.chaos.scenario import ClusterNeeds, Scenario
from janus.chaos.suite import Plan, run_scenario, with_cluster
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
        for scenario in scenarios:
            if scenario.needs_testbed:
                reason = unavailable()
                self._put(scenario, {"skipped": f"needs the testbed{f': {reason}' if reason else ''}"})
        for needs, group in _grouped([each for each in scenarios if not each.needs_testbed]):
            while left := [each for each in group if each.name not in self.reports]:
                asyncio.run(self._on_one_cluster(needs, left))
        return self.reports

    async def _on_one_cluster(self, needs: ClusterNeeds, scenarios: list[Scenario]) -> None:
        async def work(name: str) -> None:
            for scenario in scenarios:
                if not await self._run(scenario, name):
                    return  # whatever is wrong with this cluster, the next scenario gets another one

        try:
            await with_cluster(needs, work, model=self.model, name="chaos", tell=self.tell)
        except JanusError as error:
            # The cluster did not start, or did not stop: the first scenario without a report is the one to blame.
            for scenario in scenarios:
                if scenario.name not in self.reports:
                    self._put(scenario, {"runs": 0, "unmet": [str(error)]})
                    return
            self.tell(f"after {scenarios[-1].name}: {error}")

    async def _run(self, scenario: Scenario, name: str) -> bool:
        plan, runs = self.plans[scenario.name], []
        problem = ""
        try:
            await run_scenario(scenario, name, plan, self.tell, on_run=runs.append)
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
