"""What keeps links up is itself watched: a bug in it is told, and does not leave an instance alone unseen."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from structlog.testing import capture_logs

from janus.config.options import CommonOptions
from janus.messages import PROTOCOL_VERSION
from janus.messages.control import Identity, Member
from janus.runtime import cluster_client, peers
from janus.runtime.cluster_client import ClusterClient
from janus.runtime.peers import PeerSet
from janus.transport.link import InFrame, Link

LIMIT_S = 5.0
ME = Identity(protocol=PROTOCOL_VERSION, role="gateway", instance="gateway-0", node="n", incarnation="a")
PEER = Member(role="attention", instance="attention-0", node="n", host="h", port=1, incarnation="b", state="ready")


class Deaf:
    """A link's handler, and an instance, that do nothing but note why they cannot be part of the cluster."""

    def __init__(self) -> None:
        self.fatal: asyncio.Queue[str] = asyncio.Queue(8)

    def on_message(self, link: Link, request_id: int, message: object) -> None: ...
    def on_frame(self, link: Link, frame: InFrame) -> None: ...
    def on_closed(self, link: Link, error: Exception) -> None: ...
    def register(self) -> Any: ...
    def heartbeat(self) -> Any: ...
    def on_view(self, view: object) -> None: ...
    def on_load_placement(self, message: object) -> None: ...

    def on_fatal(self, problem: str) -> None:
        self.fatal.put_nowait(problem)


async def broken(*given: Any, **named: Any) -> Link:
    raise RuntimeError("a bug")


async def test_a_bug_while_dialling_is_told_and_the_next_view_dials_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "connect", broken)
    changes: asyncio.Queue[None] = asyncio.Queue(8)
    links = PeerSet(
        role="attention",
        identity=ME,
        secret=b"s" * 16,
        transport="tcp",
        handler=Deaf(),
        on_change=lambda: changes.put_nowait(None),
    )
    with capture_logs() as logs:
        for _ in range(2):
            links.update([PEER])
            async with asyncio.timeout(LIMIT_S):
                await changes.get()
            assert links.unreachable() == ["attention-0: dialling it failed (RuntimeError: a bug)"]
        await links.close("the test is over")
    assert [(line["event"], line["task"]) for line in logs] == [("task_failed", "dial[attention-0]")] * 2


async def test_without_whoever_dials_the_controller_an_instance_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_client, "connect", broken)
    events = Deaf()
    common = CommonOptions(controller="127.0.0.1:7700", secret="s" * 16)
    client = ClusterClient(common=common, identity=ME, secret=b"s" * 16, events=events)
    with capture_logs() as logs:
        client.start()
        async with asyncio.timeout(LIMIT_S):
            problem = await events.fatal.get()
        await client.close("the test is over")
    assert problem == "the link to the controller is kept up no more (RuntimeError: a bug)"
    assert [line["event"] for line in logs] == ["task_failed"]
