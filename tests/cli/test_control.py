"""The control socket: what a command hears, what is refused, and that an operation outlives whoever asked for it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from janus.cluster.control import ControlApi
from janus.cluster.control_client import ControlClient
from janus.cluster.jobs import Jobs
from janus.cluster.state import ClusterState, RunDirectory
from janus.errors import ConfigError, JanusError, LaunchError
from janus.runtime.http import HttpServer
from janus.runtime.sockets import open_unix, unix_address
from tests.cli.cluster_fakes import FakeCluster

_STATE = ClusterState(
    name="blue",
    pid=1,
    url="",
    controller="",
    controller_ops="",
    secret_file="",
    model="",
    served_model_name="",
    instances=[],
)


class Served:
    """A cluster whose operations can be asked for, as the commands do."""

    def __init__(self, cluster: FakeCluster, socket: Path) -> None:
        self.cluster = cluster
        self.socket = socket

    async def ask(self, operation: str, **body: Any) -> list[str]:
        """Return the lines that a command would print."""
        told: list[str] = []
        async with asyncio.timeout(20):
            await asyncio.to_thread(ControlClient("blue").ask, operation, body, told.append)
        return told

    async def post(self, path: str, content: bytes) -> httpx.Response:
        with unix_address(self.socket) as address:
            transport = httpx.AsyncHTTPTransport(uds=address)
            async with httpx.AsyncClient(transport=transport, base_url="http://janus", timeout=20) as client:
                return await client.post(path, content=content)


Serve = Callable[..., AbstractAsyncContextManager[Served]]


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Serve:
    # Deeper than the name of a Unix socket may be long.
    base = tmp_path / ("deep" * 30)
    base.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(base))

    @asynccontextmanager
    async def run(**sizes: int) -> AsyncIterator[Served]:
        cluster = await FakeCluster(**sizes).started()
        jobs = Jobs(cluster.told.append)
        cluster.operations.tell = jobs.tell
        with RunDirectory("blue") as directory:
            directory.write(_STATE)
            async with asyncio.TaskGroup() as group:
                api = ControlApi(operations=cluster.operations, fleet=cluster.fleet, jobs=jobs, group=group)
                server = HttpServer(api.app(), listener=open_unix(directory.control_socket))
                await server.start()
                try:
                    yield Served(cluster, directory.control_socket)
                finally:
                    jobs.cancel()
                    await server.close()

    return run


async def test_a_command_hears_what_happens_and_when_it_is_done(serve: Serve) -> None:
    async with serve(experts=1) as served:
        assert (served.socket.stat().st_mode & 0o777) == 0o600
        lines = await served.ask("scale", experts="+1")
        assert lines == ["scaling experts 1 -> 2"]
        assert await served.ask("drain", instance="expert-0") == [
            "expert-0 drains",
            "expert-0 has left; janus restart expert-0 starts it again",
        ]
        assert await served.ask("restart", instances=["expert-0"]) == ["expert-0 is started again"]
        assert lines[0] in served.cluster.told, "the log of janus up has it too"


@pytest.mark.parametrize(
    ("operation", "body", "words"),
    [
        ("scale", {}, "scale: says nothing to change; give --experts, --attention or --gateways"),
        ("scale", {"experts": "no"}, "--experts: 'no' is not a number of instances"),
        ("scale", {"expert": 2}, "body: cannot be read"),
        ("scale", {"experts": 1.5}, "body: cannot be read"),
        ("drain", {}, "body: cannot be read"),
        ("drain", {"instance": "expert-9"}, "INSTANCE: there is no instance 'expert-9'; there are: attention-0"),
        ("restart", {}, "INSTANCE: none is named; name instances, or give --rolling"),
        ("restart", {"instances": ["x"]}, "INSTANCE: there is no instance 'x'"),
    ],
)
async def test_bad_input_names_the_field_and_the_remedy(
    serve: Serve, operation: str, body: dict[str, Any], words: str
) -> None:
    async with serve() as served:
        with pytest.raises(ConfigError) as caught:
            await served.ask(operation, **body)
        assert words in str(caught.value)
        assert served.cluster.calls == []


async def test_what_is_no_json_and_what_is_too_long_is_refused(serve: Serve) -> None:
    async with serve() as served:
        for content in (b"{", b'"' + b"x" * 100_000 + b'"'):
            response = await served.post("/scale", content)
            assert response.status_code == 400
            assert response.json()["error"]["field"] == "body"
        assert (await served.post("/explode", b"{}")).status_code == 404


async def test_an_instance_that_does_not_start_is_named_with_its_last_words(serve: Serve) -> None:
    async with serve() as served:
        served.cluster.launcher.broken = {"attention-1"}
        with pytest.raises(LaunchError, match="attention-1: ended with status 1") as caught:
            await served.ask("scale", attention=2)
        assert caught.value.log_tail == ("no memory",)


async def test_one_operation_at_a_time_and_the_second_hears_of_the_first(serve: Serve) -> None:
    async with serve(experts=1) as served:
        cluster = served.cluster
        cluster.operations.ready_timeout_s = 20
        cluster.controller.joining = {"expert-1"}
        first = asyncio.create_task(served.ask("scale", experts=2), name="first")
        await cluster.calls.wait_for("start expert-1")
        assert (await instances(served))["operation"] == "scale --experts 2"
        refused = await served.post("/restart", b'{"rolling": true}')
        assert refused.status_code == 409
        with pytest.raises(JanusError, match="scale --experts 2 is under way; wait for its end"):
            await served.ask("drain", instance="expert-1")
        cluster.controller.joining = set()
        assert "waiting: expert-1 is joining" in await first
        await served.ask("drain", instance="expert-1")


async def test_an_operation_goes_on_when_its_reader_is_gone(serve: Serve) -> None:
    async with serve(experts=1) as served:
        cluster = served.cluster
        cluster.operations.ready_timeout_s = 20
        cluster.controller.joining = {"expert-1"}
        asking = asyncio.create_task(served.post("/scale", b'{"experts": 2, "attention": 2}'), name="asking")
        await cluster.calls.wait_for("start attention-1")
        asking.cancel()
        await asyncio.wait({asking})
        assert asking.cancelled()
        cluster.controller.joining = set()
        async with asyncio.timeout(10):
            while (found := await instances(served))["operation"]:
                pass
        assert found["expected"] == {"gateways": 1, "attention": 2, "experts": 2}


async def test_whoever_waits_is_told_that_the_cluster_stops(serve: Serve) -> None:
    async with serve(experts=1) as served:
        served.cluster.operations.ready_timeout_s = 20
        served.cluster.controller.joining = {"expert-1"}
        waiting = asyncio.create_task(served.ask("scale", experts=2), name="waiting")
        await served.cluster.calls.wait_for("start expert-1")
    with pytest.raises(JanusError, match="the cluster stops"):
        await waiting


async def test_instances_are_listed(serve: Serve) -> None:
    async with serve(experts=2) as served:
        await served.ask("drain", instance="expert-1")
        found = {each["name"]: (each["role"], each["state"]) for each in (await instances(served))["instances"]}
        assert found == {
            "attention-0": ("attention", "running"),
            "controller-0": ("controller", "running"),
            "expert-0": ("expert", "running"),
            "expert-1": ("expert", "drained"),
            "gateway-0": ("gateway", "running"),
        }


async def instances(served: Served) -> dict[str, Any]:
    listing: Awaitable[dict[str, Any]] = asyncio.to_thread(ControlClient("blue").instances)
    return await listing


async def test_a_cluster_that_is_starting_takes_no_operations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with RunDirectory("blue", environ=os.environ) as directory:
        directory.write(_STATE)
        with pytest.raises(
            JanusError,
            match=r"does not take operations \(no socket: .*\); it does so from its ready: line until it stops",
        ):
            ControlClient("blue").ask("scale", {"experts": 2}, print)
