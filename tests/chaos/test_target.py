"""Processes are found by the state file, chosen by role or name, and never left standing still."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from janus.chaos.target import Target
from janus.cluster.state import ClusterState, InstanceState, RunDirectory
from janus.errors import ConfigError, JanusError
from tests.e2e.waiting import until

NAMES = ("controller-0", "gateway-0", "attention-0", "expert-0", "expert-1")


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """A process that does nothing until it is ended."""
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    yield child
    child.kill()
    child.communicate()


@pytest.fixture
def target(tmp_path: Path, process: subprocess.Popen[bytes]) -> Iterator[Target]:
    """A cluster of instances that are all one process."""
    with RunDirectory("here", environ={"XDG_RUNTIME_DIR": str(tmp_path)}) as directory:
        instances = [
            InstanceState(role=name.partition("-")[0], name=name, pid=process.pid, port=1, ops_port=2, log="")
            for name in NAMES
        ]
        directory.write(
            ClusterState(
                name="here",
                pid=os.getpid(),
                url="http://127.0.0.1:1",
                controller="127.0.0.1:1",
                controller_ops="http://127.0.0.1:1",
                secret_file="",
                model="",
                served_model_name="",
                instances=instances,
            )
        )
        yield Target(directory)


def standing_still(process: subprocess.Popen[bytes]) -> bool:
    return bool(psutil.Process(process.pid).status() == psutil.STATUS_STOPPED)


def test_a_role_is_one_of_its_instances_and_a_name_is_itself(target: Target) -> None:
    chosen = {target.choose("expert", random.Random(seed)) for seed in range(20)}
    assert chosen == {"expert-0", "expert-1"}
    assert target.choose("expert-1", random.Random(0)) == "expert-1"
    assert target.url == "http://127.0.0.1:1/v1"


def test_who_is_not_there_is_told_with_those_who_are(target: Target) -> None:
    with pytest.raises(ConfigError, match="'expert-7' is no role and no instance; running are expert-0, expert-1, att"):
        target.choose("expert-7", random.Random(0))


def test_who_was_drained_is_not_chosen(target: Target) -> None:
    target.away.add("expert-0")
    assert target.names("expert") == ["expert-1"]
    assert {target.choose("expert", random.Random(seed)) for seed in range(20)} == {"expert-1"}
    with pytest.raises(JanusError, match="expert-0 is not running"):
        target.send("expert-0", signal.SIGKILL)


def test_a_stopped_process_goes_on_when_all_are_resumed(target: Target, process: subprocess.Popen[bytes]) -> None:
    target.send("expert-0", signal.SIGSTOP)
    until(lambda: standing_still(process), "it stands still", within_s=10)
    target.resume_all()
    until(lambda: not standing_still(process), "it goes on", within_s=10)
    assert not target.stopped


def test_a_process_that_is_gone_is_left_alone(target: Target, process: subprocess.Popen[bytes]) -> None:
    pid = target.send("expert-0", signal.SIGKILL)
    process.wait(10)
    target.resume(pid)


async def test_a_cluster_that_does_not_answer_is_not_whole(target: Target) -> None:
    look = await target.look()
    assert not look.serves
    assert look.problems == ("the controller does not answer (ConnectError)",)
    with pytest.raises(JanusError, match="cluster here is not whole after 0 s: the controller does not answer"):
        await target.until_whole(timeout_s=0)
