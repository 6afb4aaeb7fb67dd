"""The local launcher, with real processes: announcements, deaths, log tails, stops, and no orphan."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from janus.cluster.instances import MODULES, InstanceSpec
from janus.cluster.local import LocalLauncher, describe_status, port_arguments
from janus.errors import LaunchError
from tests.waiting import turns

ROOT = Path(__file__).parents[2]


#: What is preloaded: every instance from nothing, or forked.
WAYS: dict[str, tuple[str, ...] | None] = {"started": None, "forked": ()}


@pytest.fixture(params=WAYS)
def preload(request: pytest.FixtureRequest) -> tuple[str, ...] | None:
    return WAYS[request.param]


@pytest.fixture
async def launcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, preload: tuple[str, ...] | None
) -> AsyncIterator[LocalLauncher]:
    monkeypatch.setitem(MODULES, "expert", "tests.cli.scripted_instance")
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    async with LocalLauncher(log_dir=tmp_path, secret="top secret", environ=environ, preload=preload) as launcher:
        yield launcher


def spec(name: str) -> InstanceSpec:
    return InstanceSpec(role="expert", name=name, threads=1, arguments={"http_port": 8})


async def test_start_learns_where_an_instance_listens_and_keeps_its_log(launcher: LocalLauncher) -> None:
    started = await launcher.start(spec("good-0"), timeout_s=20)
    assert (started.port, started.ops_port, started.http_port) == (1234, 5678, 8)
    command = psutil.Process(started.pid).cmdline()
    assert command[1:3] == ["-m", "tests.cli.scripted_instance"]
    assert command[command.index("--name") + 1] == "good-0"
    await launcher.stop("good-0", timeout_s=20)
    assert not psutil.pid_exists(started.pid)
    assert started.log.read_text().startswith("log line of good-0\na stray line on stdout, threads: 1\nstopped at ")


async def test_an_instance_that_ends_early_is_named_with_its_last_words(launcher: LocalLauncher) -> None:
    with pytest.raises(LaunchError, match="broken-0: ended with status 3 before it listened") as caught:
        await launcher.start(spec("broken-0"), timeout_s=20)
    assert caught.value.log_tail == ("log line of broken-0", "cannot find the model")


async def test_an_instance_that_says_nothing_is_named(launcher: LocalLauncher) -> None:
    with pytest.raises(LaunchError, match=r"silent-0: did not say within 0\.2 s"):
        await launcher.start(spec("silent-0"), timeout_s=0.2)


async def test_an_unexpected_end_is_reported_and_an_ordered_one_is_not(launcher: LocalLauncher) -> None:
    first = await launcher.start(spec("good-0"), timeout_s=20)
    second = await launcher.start(spec("good-1"), timeout_s=20)
    await launcher.stop("good-0", timeout_s=20)
    os.kill(second.pid, signal.SIGKILL)
    async with asyncio.timeout(10):
        exited = await launcher.watch()
    assert (exited.name, describe_status(exited.status)) == ("good-1", "signal SIGKILL")
    assert not psutil.pid_exists(first.pid)


async def test_an_instance_that_ignores_sigterm_is_ended_by_force(launcher: LocalLauncher) -> None:
    started = await launcher.start(spec("stubborn-0"), timeout_s=20)
    async with asyncio.timeout(10):
        await launcher.stop("stubborn-0", timeout_s=0.1)
    assert not psutil.pid_exists(started.pid)


async def test_an_instance_is_told_to_stop_only_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, preload: tuple[str, ...] | None
) -> None:
    """A second SIGTERM would end a service at once, and cut off what it still has to finish."""
    monkeypatch.setitem(MODULES, "expert", "tests.cli.scripted_instance")
    said: list[str] = []
    told = asyncio.Event()

    def echo(_: str, line: str) -> None:
        said.append(line)
        if line == "told to stop":
            told.set()

    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    async with LocalLauncher(
        log_dir=tmp_path, secret="top secret", environ=environ, echo=echo, preload=preload
    ) as launcher:
        started = await launcher.start(spec("patient-0"), timeout_s=20)
        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            group.create_task(launcher.stop("patient-0", timeout_s=20), name="first")
            await told.wait()
            group.create_task(launcher.stop("patient-0", timeout_s=20), name="second")
            await turns()  # it has sent what it sends
            os.kill(started.pid, signal.SIGUSR1)
    assert said[1:] == ["told to stop", "told again: False"]


async def test_a_name_can_be_started_again_where_its_peers_look_for_it(launcher: LocalLauncher) -> None:
    first = await launcher.start(spec("good-0"), timeout_s=20)
    assert port_arguments("controller", first) == {"port": 1234, "ops_port": 5678}
    await launcher.stop("good-0", timeout_s=20)
    second = await launcher.start(spec("good-0"), timeout_s=20)
    assert second.pid != first.pid


async def test_close_leaves_nobody_behind(launcher: LocalLauncher) -> None:
    pids = [(await launcher.start(spec(f"stubborn-{index}"), timeout_s=20)).pid for index in range(3)]
    async with asyncio.timeout(10):
        await launcher.close()
    assert not any(psutil.pid_exists(pid) for pid in pids)
