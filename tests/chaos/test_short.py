"""Every scenario that comes with Janus, once and short, on real clusters: no token lost, repeated or changed."""

from __future__ import annotations

import random

import pytest
from msgspec.structs import replace

from janus.chaos.control import SocketControl
from janus.chaos.files import find, load_scenario, shipped
from janus.chaos.report import as_json
from janus.chaos.run import Runner, RunResult
from janus.chaos.scenario import Scenario
from janus.chaos.target import Target
from janus.cluster.state import RunDirectory
from tests.chaos.shared import SharedClusters

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(200)]

#: What a test must not take: the machine that runs it may be busy with something else, so times are not looked at.
STREAMS, TOKENS = 8, 64
LONGEST_S = 2.0


def short(name: str) -> Scenario:
    """The scenario with fewer streams, shorter answers and its steps close to each other."""
    scenario = load_scenario(find(name))
    steps = [replace(step, at="random(0.1, 0.5)", lasts=min(step.lasts, LONGEST_S)) for step in scenario.step]
    if name == "domain-change":  # too short for the controller to look: on the cluster that others use
        scenario = replace(scenario, cluster=load_scenario(find("nothing")).cluster)
    load = replace(scenario.load, streams=STREAMS, max_tokens=TOKENS, after=0.2)
    return replace(scenario, load=load, step=steps)


#: Those that share a cluster stand together.
RUNNABLE = sorted(
    (name for name, path in shipped().items() if not load_scenario(path).needs_testbed),
    key=lambda name: (str(short(name).cluster), name),
)


@pytest.mark.parametrize("name", RUNNABLE)
async def test_clients_get_every_token_once(name: str, clusters: SharedClusters) -> None:
    scenario = short(name)
    cluster = clusters.name(scenario.cluster)
    runner = Runner(scenario, Target(RunDirectory(cluster)), SocketControl(cluster))
    await runner.prepare()
    result = await runner.run(random.Random(name))
    assert_right(scenario, result, clusters)


def assert_right(scenario: Scenario, result: RunResult, clusters: SharedClusters) -> None:
    report = as_json(scenario, [result], seed=0)
    found = {key: report[key] for key in ("lost", "repeated", "changed", "refused")}
    why = f"{report['each'][0]}\n{clusters.log_tails()}"
    assert found == {"lost": 0, "repeated": 0, "changed": 0, "refused": 0}, why
    assert result.client_errors <= scenario.expect.client_errors, why
    assert result.in_flight > 0
    assert len(result.steps) == len(scenario.step)
