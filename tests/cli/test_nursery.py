"""Instances that are forked from a process which has loaded what they need: what it must be, and what if it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from pathlib import Path
from typing import Any

import psutil
import pytest

from janus.cluster.instances import MODULES, InstanceSpec, Started
from janus.cluster.local import PRELOADED, LocalLauncher
from janus.errors import LaunchError

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODULES, "expert", "tests.cli.scripted_instance")


def launcher_of(log_dir: Path, preload: tuple[str, ...] = ()) -> LocalLauncher:
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    return LocalLauncher(log_dir=log_dir, secret="top secret", environ=environ, preload=preload)


def spec(name: str, **more: Any) -> InstanceSpec:
    return InstanceSpec(role="expert", name=name, threads=1, arguments={}, **more)


def nursery_of(started: Started) -> psutil.Process:
    parent = psutil.Process(started.pid).parent()
    assert parent is not None
    assert parent.cmdline()[1:] == ["-m", "janus.cluster.nursery"]
    return parent


async def test_what_is_preloaded_starts_no_thread(tmp_path: Path) -> None:
    """A fork has the one thread that forked it: another thread's locks would stay locked in it for ever."""
    async with launcher_of(tmp_path, PRELOADED) as launcher:
        nursery = nursery_of(await launcher.start(spec("good-0"), timeout_s=60))
        loaded = {Path(each.path).name.partition(".")[0] for each in nursery.memory_maps()}
        assert "libtorch_cpu" in loaded
        assert not loaded & {"libucp", "libucxx"}
        assert nursery.num_threads() == 1


async def test_an_instance_inherits_descriptors_under_their_numbers(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with launcher_of(tmp_path) as launcher:
            started = await launcher.start(spec("good-0", fds=(listener.fileno(),)), timeout_s=20)
            theirs, ours = (Path(f"/proc/{pid}/fd/{listener.fileno()}") for pid in (started.pid, "self"))
            assert theirs.readlink() == ours.readlink()
            assert sorted(int(each.name) for each in theirs.parent.iterdir()) == [0, 1, 2, listener.fileno()]


async def test_those_forked_end_with_it_and_the_next_start_gets_another(tmp_path: Path) -> None:
    async with launcher_of(tmp_path) as launcher:
        first, _ = [await launcher.start(spec(f"good-{index}"), timeout_s=20) for index in range(2)]
        nursery = nursery_of(first)
        nursery.kill()
        async with asyncio.timeout(20):
            ended = {(await launcher.watch()).name for _ in range(2)}
        assert ended == {"good-0", "good-1"}
        third = await launcher.start(spec("good-2"), timeout_s=20)
        assert nursery_of(third) != nursery
        os.kill(third.pid, signal.SIGKILL)
        async with asyncio.timeout(20):
            exited = await launcher.watch()
        assert (exited.name, exited.status) == ("good-2", -signal.SIGKILL)


async def test_one_that_cannot_load_says_why(tmp_path: Path) -> None:
    async with launcher_of(tmp_path, ("no_such_module",)) as launcher:
        with pytest.raises(LaunchError, match="forked from has ended") as caught:
            await launcher.start(spec("good-0"), timeout_s=20)
    assert caught.value.log_tail[-1] == "ModuleNotFoundError: No module named 'no_such_module'"


async def test_an_instance_that_cannot_be_run_is_named_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODULES, "expert", "tests.cli.no_such_service")
    async with launcher_of(tmp_path) as launcher:
        with pytest.raises(LaunchError, match="good-0: ended with status 1 before it listened") as caught:
            await launcher.start(spec("good-0"), timeout_s=20)
    assert "No module named tests.cli.no_such_service" in caught.value.log_tail[-1]
