"""The scenarios that cut a network, once and short: no token lost, repeated or changed."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
from benchmarks.chaos.nodes import nodes
from msgspec.structs import replace

from janus.chaos.control import SocketControl
from janus.chaos.files import find, load_scenario, shipped
from janus.chaos.run import Runner, RunResult
from janus.chaos.suite import with_cluster
from janus.chaos.target import Target
from janus.cluster.state import RunDirectory

pytestmark = [pytest.mark.alone, pytest.mark.cluster, pytest.mark.timeout(200)]

MODEL = Path(__file__).parents[2] / "models" / "janus-tiny"
CUTS = sorted(name for name, path in shipped().items() if load_scenario(path).needs_testbed)


def test_clients_get_every_token_once(permitted: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    scenarios = []
    for name in CUTS:
        scenario = load_scenario(find(name))
        steps = [replace(step, at="random(0.1, 0.5)") for step in scenario.step]
        load = replace(scenario.load, streams=8, max_tokens=64, after=0.2)
        scenarios.append(replace(scenario, load=load, step=steps))
    assert all(scenario.cluster == scenarios[0].cluster for scenario in scenarios)
    found: dict[str, RunResult] = {}
    told: list[str] = []

    with nodes(scenarios[0].cluster) as network:

        async def work(cluster: str) -> None:
            for scenario in scenarios:
                runner = Runner(scenario, Target(RunDirectory(cluster)), SocketControl(cluster), network)
                await runner.prepare()
                found[scenario.name] = await runner.run(random.Random(scenario.name))

        asyncio.run(
            with_cluster(
                scenarios[0].cluster, work, model=MODEL, name="cuts", tell=told.append, launcher_type=network.launcher
            )
        )

    assert sorted(found) == CUTS == ["attention-cut", "expert-cut"]
    for name, result in found.items():
        figures = (result.lost, result.repeated, result.changed, result.client_errors)
        assert figures == (0, 0, 0, 0), (name, result.wrong, result.told, told)
        assert result.in_flight > 0
        assert result.steps[0].over - result.steps[0].at >= 4.0
