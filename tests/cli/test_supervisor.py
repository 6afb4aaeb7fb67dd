"""The supervisor over real processes that serve nothing: start, restarts and their pace, stop order, failures."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import psutil
import pytest

from janus.cluster.instances import MODULES, plan_instances
from janus.cluster.local import LocalLauncher
from janus.cluster.sizes import Sizes
from janus.cluster.state import RunDirectory
from janus.cluster.supervisor import Supervisor
from janus.config import UpOptions
from janus.errors import LaunchError
from janus.messages.control import StatusReport
from tests.cli.cluster_fakes import Calls, FakeController, report_of

ROOT = Path(__file__).parents[2]
Supervise = Callable[[UpOptions], AbstractAsyncContextManager[tuple[Supervisor, "Told"]]]


class Told:
    """What the user was told, and a wait for more of it."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._more = asyncio.Event()

    def __call__(self, line: str) -> None:
        self.lines.append(line)
        self._more.set()

    async def wait_for(self, pattern: str) -> str:
        async with asyncio.timeout(20):
            while True:
                found = [line for line in self.lines if re.search(pattern, line)]
                if found:
                    return found[-1]
                self._more.clear()
                await self._more.wait()


@pytest.fixture
def supervise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Supervise:
    for role in MODULES:
        monkeypatch.setitem(MODULES, role, "tests.cli.scripted_instance")

    @asynccontextmanager
    async def run(options: UpOptions) -> AsyncIterator[tuple[Supervisor, Told]]:
        told = Told()
        specs = plan_instances(options, cores=2, fixed={})
        environ = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_RUNTIME_DIR": str(tmp_path)}
        with RunDirectory("test", environ=environ) as directory:
            secret = directory.write_secret("a long secret")
            async with LocalLauncher(
                log_dir=directory.path, secret="a long secret", environ=environ, preload=()
            ) as launcher:
                yield Supervisor(options, specs, launcher, directory, secret, told), told

    return run


def up_options(**changes: object) -> UpOptions:
    values: dict[str, object] = {"model": Path("/m"), "port": 0, "attention": 1, "experts": 2, "name": "test"}
    return UpOptions(**(values | changes))  # type: ignore[arg-type]


def pids(told: Told) -> dict[str, int]:
    """The latest pid of every instance, from what the user was told."""
    found = [re.fullmatch(r"(\S+) listens on port \d+ \(pid (\d+)\)", line) for line in told.lines]
    return {match[1]: int(match[2]) for match in found if match}


async def test_start_ends_with_a_state_file_of_every_instance(supervise: Supervise) -> None:
    async with supervise(up_options()) as (supervisor, told):
        await supervisor.start()
        state = supervisor.directory.read()
        assert {each.name: each.pid for each in state.instances} == pids(told)
        assert len(state.instances) == 5
        assert state.url == supervisor.url
        assert state.controller == "127.0.0.1:1234"


async def test_an_instance_that_dies_is_restarted_at_once_and_then_ever_later(supervise: Supervise) -> None:
    async with supervise(up_options()) as (supervisor, told):
        await supervisor.start()
        keeper = asyncio.create_task(supervisor.keep(), name="keep")
        first = pids(told)["expert-1"]
        psutil.Process(first).kill()
        assert (await told.wait_for("expert-1 ended")).endswith("ended with signal SIGKILL; restarted")
        second = await latest_pid(told, "expert-1", first)
        psutil.Process(second).kill()
        await told.wait_for(r"expert-1 ended with signal SIGKILL; restarted in 0\.5 s")
        third = await latest_pid(told, "expert-1", second)
        assert third in {each.pid for each in supervisor.directory.read().instances}
        keeper.cancel()
        await asyncio.wait({keeper})


async def test_a_restarted_controller_and_gateway_listen_where_they_did(supervise: Supervise) -> None:
    async with supervise(up_options()) as (supervisor, told):
        await supervisor.start()
        keeper = asyncio.create_task(supervisor.keep(), name="keep")
        url = supervisor.url
        for name in ("controller-0", "gateway-0"):
            before = pids(told)[name]
            psutil.Process(before).kill()
            again = psutil.Process(await latest_pid(told, name, before)).cmdline()
            if name == "controller-0":
                assert again[again.index("--port") + 1] == "1234"
                assert again[again.index("--ops-port") + 1] == "5678"
        assert supervisor.url == url
        keeper.cancel()
        await asyncio.wait({keeper})


async def test_an_instance_that_hangs_is_ended_and_comes_back(supervise: Supervise) -> None:
    async with supervise(up_options(hung_after_s=0.1)) as (supervisor, told):
        await supervisor.start()
        controller = FakeController(Calls())
        supervisor.operations.controller = controller
        # Given up by the controller, as it listens now; whoever takes its place listens elsewhere.
        (hung,) = [each for each in supervisor.fleet.running() if each.name == "expert-1"]
        psutil.Process(hung.pid).suspend()
        report = report_of([hung], failed={"expert-1"})
        controller.status = lambda: answered(report)  # type: ignore[method-assign]
        keeper = asyncio.create_task(supervisor.keep(), name="keep")
        await told.wait_for(rf"expert-1 hangs: it was given up by the controller, and its process {hung.pid} lives")
        await told.wait_for("expert-1 ended with signal SIGKILL; restarted")
        assert await latest_pid(told, "expert-1", hung.pid)
        keeper.cancel()
        await asyncio.wait({keeper})


async def test_operations_reach_the_instances(supervise: Supervise) -> None:
    async with supervise(up_options(drain_timeout_s=1.0)) as (supervisor, told):
        await supervisor.start()
        controller = FakeController(Calls())
        controller.running = supervisor.fleet.running
        supervisor.operations.controller = controller
        keeper = asyncio.create_task(supervisor.keep(), name="keep")
        await supervisor.operations.scale(Sizes(gateways=2, attention=1, experts=1))
        assert supervisor.fleet.names("gateway", "expert") == ["expert-0", "gateway-0", "gateway-1"]
        assert {each.name for each in supervisor.directory.read().instances} == set(supervisor.fleet.names())
        before = pids(told)
        await supervisor.operations.restart(["gateway-0"], in_place=False)
        assert not psutil.pid_exists(before["gateway-0"])
        assert pids(told)["gateway-1"] == before["gateway-1"]
        assert not [line for line in told.lines if " ended with " in line], "what leaves when told to is no failure"
        keeper.cancel()
        await asyncio.wait({keeper})


async def answered(report: StatusReport) -> StatusReport:
    return report


async def test_without_restarts_a_death_is_told_and_no_more(supervise: Supervise) -> None:
    async with supervise(up_options(restart="never")) as (supervisor, told):
        await supervisor.start()
        keeper = asyncio.create_task(supervisor.keep(), name="keep")
        before = pids(told)
        psutil.Process(before["expert-0"]).kill()
        await told.wait_for("expert-0 ended with signal SIGKILL; not restarted")
        assert pids(told) == before
        keeper.cancel()
        await asyncio.wait({keeper})


async def test_stop_goes_from_the_clients_inwards(supervise: Supervise) -> None:
    async with supervise(up_options(attention=2)) as (supervisor, told):
        await supervisor.start()
        await supervisor.stop()
        assert not [pid for pid in pids(told).values() if psutil.pid_exists(pid)]
        ended = {log.stem: last_word(log) for log in supervisor.directory.path.glob("*-*.log")}
        assert len(ended) == 6
        order = [name.partition("-")[0] for name in sorted(ended, key=lambda name: ended[name])]
        assert order == ["gateway", "attention", "attention", "expert", "expert", "controller"]


async def test_a_cluster_that_does_not_become_ready_says_what_it_waits_for(
    supervise: Supervise, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCRIPTED_UNREADY", "1")
    async with supervise(up_options(start_timeout_s=1.0)) as (supervisor, _):
        with pytest.raises(LaunchError, match=r"cluster test: not ready after 1 s: the controller does not answer"):
            await supervisor.start()


async def latest_pid(told: Told, name: str, before: int) -> int:
    """The pid of instance ``name`` once it is no longer ``before``."""
    await told.wait_for(rf"{name} listens on port \d+ \(pid (?!{before}\))\d+\)")
    return pids(told)[name]


def last_word(log: Path) -> int:
    """The time in the line that an instance ends with."""
    return int(log.read_text().rsplit(" ", 1)[1])
