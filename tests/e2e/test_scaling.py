"""A cluster is scaled, and its processes are replaced, while streams run: every token stays right."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Iterator

import httpx
import pytest

from tests.e2e.cases import prompts_for
from tests.e2e.client import Client
from tests.e2e.cluster import Cluster, Spec
from tests.e2e.hostile import streams_beside
from tests.e2e.lab import Lab
from tests.e2e.test_faults import PATIENT, SLOW_DRAIN
from tests.e2e.waiting import LIMIT_S, until_async

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

Connect = Callable[[Cluster], Client]


@pytest.fixture(scope="module")
def elastic(lab: Lab) -> Iterator[Cluster]:
    """One attention and one expert instance; every test leaves it so, and whole."""
    arguments = (*SLOW_DRAIN, "--hung-after", "1")
    cluster = lab.clusters.launch(Spec(model=lab.model_dir("grouped"), environment=PATIENT, arguments=arguments))
    yield cluster.wait_ready()
    lab.clusters.close(cluster)


async def janus(cluster: Cluster, *arguments: str, status: int | None = 0) -> str:
    """Run one command as a user does; returns what it says, and checks how it ends (``None``: in any way)."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "janus_cli", *arguments),
        env=dict(cluster.environ),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(4 * LIMIT_S):
        said, _ = await process.communicate()
    assert status in (None, process.returncode), said.decode()
    cluster.children()
    return said.decode()


@pytest.mark.slow  # tests/chaos joins and drains, too; here the tokens are those of transformers
async def test_a_cluster_grows_and_shrinks_under_streams(elastic: Cluster, connect: Connect, lab: Lab) -> None:
    async with streams_beside(connect(elastic), prompts_for(lab.oracle("grouped"))):
        await janus(elastic, "scale", "--experts", "3", "--attention", "+1")
        assert elastic.names("expert") == ["expert-0", "expert-1", "expert-2"]
        assert len(elastic.names("attention")) == 2
        assert elastic.whole()
        shown = await janus(elastic, "status")
        assert "expert-2" in shown
        await janus(elastic, "scale", "--experts", "1", "--attention", "-1")
        assert elastic.names("expert") == ["expert-0"]
    placement = elastic.status().view.placement
    assert placement is not None
    assert placement.instances == ["expert-0"]
    assert elastic.whole()
    elastic.wait_idle()


@pytest.mark.slow  # tests/chaos restarts everything in turn, too; here the tokens are those of transformers
async def test_every_process_is_replaced_under_streams(elastic: Cluster, connect: Connect, lab: Lab) -> None:
    before = {each.name: each.pid for each in elastic.state().instances}
    async with streams_beside(connect(elastic), prompts_for(lab.oracle("grouped"))):
        await janus(elastic, "restart", "--rolling")
    after = {each.name: each.pid for each in elastic.state().instances}
    assert after.keys() == before.keys()
    assert not set(after.values()) & set(before.values())
    assert elastic.whole()
    elastic.wait_idle()


async def test_what_cannot_be_done_says_why_and_does_nothing(elastic: Cluster) -> None:
    before = elastic.state().instances
    said = await janus(elastic, "scale", "--experts", "0", status=2)
    assert said.startswith("error: --experts: 0 is too few: without one, no request can be served; keep at least 1")
    said = await janus(elastic, "drain", "expert-0", status=2)
    assert "error: INSTANCE: expert-0 is the only expert instance that runs; add another one first" in said
    assert elastic.state().instances == before
    assert elastic.whole()


async def test_a_connection_made_while_no_gateway_lives_is_served(elastic: Cluster, connect: Connect, lab: Lab) -> None:
    expected = prompts_for(lab.oracle("grouped"))[0]
    killed = elastic.send("gateway-0", signal.SIGKILL)
    answer = await connect(elastic).complete(expected.prompt)
    assert (answer.status, answer.text) == (200, expected.text)
    assert elastic.instance("gateway-0").pid != killed

    async def whole() -> bool:
        return elastic.whole()

    await until_async(whole, "the new gateway is registered")
    elastic.wait_idle()


async def test_an_instance_that_hangs_is_replaced(elastic: Cluster, connect: Connect, lab: Lab) -> None:
    async with streams_beside(connect(elastic), prompts_for(lab.oracle("grouped"))):
        hung = elastic.send("expert-0", signal.SIGSTOP)

        async def replaced() -> bool:
            return elastic.instance("expert-0").pid != hung and elastic.whole()

        await until_async(replaced, "another expert-0 is ready", within_s=3 * LIMIT_S)
    assert f"expert-0 hangs: it was given up by the controller, and its process {hung} lives" in elastic.told()
    elastic.wait_idle()


async def test_every_service_says_how_it_is_on_its_own_port(elastic: Cluster) -> None:
    own = {
        "controller": "janus_cluster_members",
        "gateway": "vllm:num_requests_running",
        "attention": "vllm:kv_cache_usage_perc",
        "expert": "janus_expert_waiting",
    }
    async with httpx.AsyncClient(timeout=LIMIT_S, trust_env=False) as client:
        for each in elastic.state().instances:
            url = f"http://127.0.0.1:{each.ops_port}"
            health = (await client.get(f"{url}/health")).json()
            assert (health["status"], health["reason"]) == ("ready", ""), each.name
            assert (await client.get(f"{url}/ready")).status_code == 200
            assert own[each.role] in (await client.get(f"{url}/metrics")).text


async def test_a_lost_instance_that_nobody_restarts_leaves_the_cluster_degraded_until_it_is(
    lab: Lab, own_cluster: Callable[[Spec], Cluster], connect: Connect
) -> None:
    cluster = own_cluster(Spec(model=lab.model_dir("grouped"), experts=2, arguments=("--restart", "never")))
    cluster.send("expert-1", signal.SIGKILL)

    async def degraded() -> bool:
        return "expert-1 has not registered" in await janus(cluster, "status", status=None)

    await until_async(degraded, "janus status names who is missing")
    await janus(cluster, "status", status=1)
    ops = f"{cluster.state().controller_ops}/health"
    async with httpx.AsyncClient(timeout=LIMIT_S, trust_env=False) as client:
        health = (await client.get(ops)).json()
    assert health["status"] == "degraded"
    assert "expert-1 has not registered" in health["reason"]
    await janus(cluster, "restart", "expert-1")
    await janus(cluster, "status")
    expected = prompts_for(lab.oracle("grouped"))[0]
    assert (await connect(cluster).complete(expected.prompt)).text == expected.text
