"""Tasks with an owner: kept, ended with it, and heard of when they fail."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from janus.runtime.tasks import OwnedTasks


async def until(event: asyncio.Event) -> None:
    async with asyncio.timeout(5):
        await event.wait()


async def test_a_failure_is_logged_and_its_owner_told() -> None:
    tasks, told = OwnedTasks(), asyncio.Event()
    errors: list[BaseException] = []

    async def fails() -> None:
        raise RuntimeError("the disk is gone")

    def failed(error: BaseException) -> None:
        errors.append(error)
        told.set()

    with capture_logs() as logs:
        tasks.start(fails(), name="look", failed=failed)
        await until(told)
    assert [str(error) for error in errors] == ["the disk is gone"]
    assert [(line["event"], line["task"], line["log_level"]) for line in logs] == [("task_failed", "look", "error")]
    await tasks.close()  # nothing is left to wait for


async def test_closing_cancels_and_waits_for_the_end() -> None:
    tasks, began, tidied = OwnedTasks(), asyncio.Event(), []

    async def serves() -> None:
        try:
            began.set()
            await asyncio.get_running_loop().create_future()
        finally:
            tidied.append("tidied")

    task = tasks.start(serves(), name="serve")
    await until(began)
    with capture_logs() as logs:
        await tasks.close()
    assert task.cancelled() and tidied == ["tidied"] and not logs


async def test_one_that_has_not_begun_is_ended_without_a_trace() -> None:
    tasks, began = OwnedTasks(), []

    async def begins() -> None:
        began.append(True)

    tasks.start(begins(), name="never")
    await tasks.close()
    assert not began


async def test_one_that_will_not_end_is_named_and_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("janus.runtime.tasks._END_LIMIT_S", 0.01)
    tasks, began, let_go = OwnedTasks(), asyncio.Event(), asyncio.Event()

    async def clings() -> None:
        while not let_go.is_set():
            try:
                began.set()
                await let_go.wait()
            except asyncio.CancelledError:
                continue

    task = tasks.start(clings(), name="clings")
    await until(began)
    with capture_logs() as logs:
        await tasks.close()
    assert [(line["event"], line["task"]) for line in logs] == [("task_does_not_end", "clings")]
    let_go.set()
    await asyncio.wait({task}, timeout=5)
    assert task.done()
