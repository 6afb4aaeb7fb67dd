"""Starts in any order, ends in order, and nothing stays: whoever is told to stop, and however it ends."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest

from janus.cluster.instances import InstanceSpec, Started
from janus.cluster.local import LocalLauncher
from janus.cluster.status import fetch_status, problems
from janus.messages.control import Role
from tests.e2e.cases import prompts_for
from tests.e2e.client import Client
from tests.e2e.cluster import Cluster, Spec
from tests.e2e.lab import Lab
from tests.e2e.test_faults import streaming
from tests.e2e.waiting import LIMIT_S, until, until_async

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

#: Within which a missing peer must be named once a process is up.
_NAMED_WITHIN_S = 5.0


@pytest.fixture
async def launcher(tmp_path: Path) -> AsyncIterator[LocalLauncher]:
    secret = "a secret of this test"
    async with LocalLauncher(log_dir=tmp_path, secret=secret, environ=os.environ) as made:
        yield made


async def test_instances_start_in_any_order_and_name_who_is_missing(
    lab: Lab, launcher: LocalLauncher, tmp_path: Path
) -> None:
    model = str(lab.model_dir("grouped"))
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]

    def spec(role: Role, name: str, **more: object) -> InstanceSpec:
        arguments: dict[str, object] = {
            "model": model,
            "controller": f"127.0.0.1:{port}",
            "transport": "ucx",
            "drain_timeout": 5,
            **more,
        }
        return InstanceSpec(role=role, name=name, threads=1, arguments=arguments)

    controller = spec("controller", "controller-0", port=port, expect_attention=1, expect_experts=2, expect_gateways=1)
    del controller.arguments["controller"]
    others = [
        spec("attention", "attention-0", threads=1),
        spec("expert", "expert-0", threads=1),
        spec("gateway", "gateway-0", http_port=0),
    ]
    random.shuffle(others)

    async def said(name: str, *words: str) -> None:
        async def look() -> bool:
            lines = (tmp_path / f"{name}.log").read_text().splitlines()
            return any(all(word in line for word in words) for line in lines)

        await until_async(look, f"{name} says {words}", within_s=4 * _NAMED_WITHIN_S)

    # Without a controller each says so.
    started: dict[str, Started] = {}
    for each in others:
        started[each.name] = await launcher.start(each, timeout_s=2 * LIMIT_S)
        await said(each.name, "waiting_for_controller", f"127.0.0.1:{port}")
    # With one, each names who is not there.
    started["controller-0"] = await launcher.start(controller, timeout_s=2 * LIMIT_S)
    for name in started:
        await said(name, "missing", "expert-1")
    ops = f"http://127.0.0.1:{started['controller-0'].ops_port}"
    assert "expert-1 has not registered" in problems(await fetch_status(ops, timeout_s=LIMIT_S))
    async with Client(f"http://127.0.0.1:{started['gateway-0'].http_port}") as client:
        health = await client.http.get("/health")
        assert health.status_code == 503
        assert "expert-1" in health.text

        await launcher.start(spec("expert", "expert-1", threads=1), timeout_s=2 * LIMIT_S)

        async def ready() -> bool:
            return (await client.http.get("/ready")).status_code == 200

        await until_async(ready, "the cluster is ready")
        expected = prompts_for(lab.oracle("grouped"))[0]
        assert (await client.complete(expected.prompt)).text == expected.text


async def test_sigterm_finishes_the_streams_and_leaves_nothing(
    lab: Lab, own_cluster: Callable[[Spec], Cluster], connect: Callable[[Cluster], Client]
) -> None:
    cluster = own_cluster(Spec(model=lab.model_dir("grouped"), arguments=("--drain-timeout", "90")))
    async with streaming(connect(cluster), prompts_for(lab.oracle("grouped"))) as streams:
        cluster.terminate()
        await streams.all_right()
    assert await asyncio.to_thread(cluster.process.wait, LIMIT_S) == 0
    assert cluster.wait_gone(LIMIT_S) == []
    assert cluster.process.stdout is not None
    assert cluster.process.stdout.read() == "", "stdout is for the ready line"


async def test_a_second_sigterm_does_not_wait(
    lab: Lab, own_cluster: Callable[[Spec], Cluster], connect: Callable[[Cluster], Client]
) -> None:
    spec = Spec(model=lab.model_dir("grouped"), monolithic=True, arguments=("--drain-timeout", "600"))
    cluster = own_cluster(spec)
    cluster.children()
    async with streaming(connect(cluster), prompts_for(lab.oracle("grouped"))):
        # A stopped attention instance never finishes its streams: only force ends this.
        cluster.send("attention-0", signal.SIGSTOP)
        cluster.terminate()
        until(lambda: "stopping" in cluster.told(), "janus up says that it stops")
        cluster.terminate()
        await asyncio.to_thread(cluster.process.wait, LIMIT_S)
        assert cluster.wait_gone(LIMIT_S) == []
    assert "forced" in cluster.told()


def test_a_killed_test_run_leaves_no_cluster() -> None:
    """The tie that every cluster here runs under: a process that outlives nobody."""
    tied = Path(__file__).with_name("tied.py")
    script = (
        "import os, subprocess, sys, time\n"
        f"command = [sys.executable, {str(tied)!r}, str(os.getpid()), '/bin/cat']\n"
        "child = subprocess.Popen(command, stdin=subprocess.PIPE)\n"
        "print(child.pid, flush=True)\n"
        "child.wait()\n"
    )
    runner = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert runner.stdout is not None
    child = psutil.Process(int(runner.stdout.readline()))
    until(lambda: child.name() == "cat", "the child has replaced itself")
    runner.kill()
    runner.wait()
    runner.stdout.close()
    gone, _ = psutil.wait_procs([child], timeout=LIMIT_S)
    assert gone
