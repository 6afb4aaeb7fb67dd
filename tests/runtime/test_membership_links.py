"""An instance's ties: to the controller (registration, heartbeats, views) and to its peers, through losses."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import msgspec
import pytest

from janus.config.options import CommonOptions
from janus.errors import LinkError
from janus.messages import Message
from janus.messages.control import (
    ClusterView,
    Fatal,
    Heartbeat,
    Identity,
    Leave,
    LoadPlacement,
    Member,
    PlacementLoaded,
    Refused,
    Register,
    Registered,
)
from janus.runtime.cluster_client import ClusterClient
from janus.runtime.peers import PeerSet
from janus.transport import InFrame, Link, Listener, listen
from tests.runtime.conftest import identity
from tests.runtime.world import HALVES, LIMIT_S, SECRET
from tests.waiting import eventually


@dataclass
class Controller:
    """Answers registrations; remembers what is said to it."""

    said: list[Message] = field(default_factory=list)
    answer: Message = field(default_factory=lambda: Registered(heartbeat_s=0.02))
    refuse: Refused | None = None
    links: list[Link] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def admit(self, _: Identity) -> Refused | None:
        return self.refuse

    def on_message(self, link: Link, request_id: int, message: Message) -> None:
        self.said.append(message)
        if isinstance(message, Register):
            self.links.append(link)
            link.reply(request_id, self.answer)
        self.changed.set()

    def on_frame(self, link: Link, frame: InFrame) -> None:
        frame.release()

    def on_closed(self, link: Link, error: LinkError) -> None:
        self.changed.set()

    def count(self, kind: type[Message]) -> int:
        return sum(isinstance(message, kind) for message in self.said)

    async def heard(self, kind: type[Message], times: int = 1) -> None:
        await until(self.changed, lambda: self.count(kind) >= times)


@dataclass
class Events:
    """What an instance is told."""

    views: list[ClusterView] = field(default_factory=list)
    loads: list[LoadPlacement] = field(default_factory=list)
    fatal: list[str] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def register(self) -> Register:
        return Register(host="h", port=1, pid=2)

    def heartbeat(self) -> Heartbeat:
        return Heartbeat(state="ready")

    def on_view(self, view: ClusterView) -> None:
        self.views.append(view)
        self.changed.set()

    def on_load_placement(self, message: LoadPlacement) -> None:
        self.loads.append(message)
        self.changed.set()

    def on_fatal(self, problem: str) -> None:
        self.fatal.append(problem)
        self.changed.set()


async def until(changed: asyncio.Event, condition: object) -> None:
    assert callable(condition)
    async with asyncio.timeout(LIMIT_S):
        while not condition():
            changed.clear()
            await changed.wait()


@contextlib.asynccontextmanager
async def controller_and_client(
    controller: Controller, *, secret: bytes = SECRET
) -> AsyncIterator[tuple[ClusterClient, Events]]:
    listener = await listen(
        "tcp",
        "127.0.0.1",
        0,
        identity=identity("controller", "controller-0"),
        secret=SECRET,
        admit=controller.admit,
        handler_factory=lambda _: controller,
    )
    events = Events()
    common = CommonOptions(controller=f"127.0.0.1:{listener.port}", transport="tcp", secret=secret.decode(), name="me")
    client = ClusterClient(common=common, identity=identity("expert", "me"), secret=secret, events=events)
    client.start()
    try:
        yield client, events
    finally:
        await client.close("the test is over")
        await listener.close()


def view(version: int, *members: Member, missing: tuple[str, ...] = ()) -> ClusterView:
    return ClusterView(version=version, members=list(members), missing=list(missing), placement=None)


async def test_it_registers_reports_and_hears() -> None:
    controller = Controller()
    async with controller_and_client(controller) as (client, events):
        await controller.heard(Register)
        await controller.heard(Heartbeat, 3)
        assert client.connected
        link = controller.links[0]
        link.post_message(view(7))
        link.post_message(LoadPlacement(table=HALVES))
        await until(events.changed, lambda: events.loads)
        assert [each.version for each in events.views] == [7]
        assert client.view is not None
        client.placement_loaded(PlacementLoaded(epoch=1, replicas=4, bytes_read=1, seconds=0.1))
        client.leave("done")
        await controller.heard(PlacementLoaded)
        await controller.heard(Leave)


async def test_a_lost_controller_is_looked_for_and_the_view_stays() -> None:
    controller = Controller()
    async with controller_and_client(controller) as (client, events):
        await controller.heard(Register)
        controller.links[0].post_message(view(3))
        await until(events.changed, lambda: events.views)
        controller.links[0].abort("killed")
        await controller.heard(Register, 2)
        await controller.heard(Heartbeat, controller.count(Heartbeat) + 2)
        assert client.view is not None
        assert client.view.version == 3
        assert not events.fatal


async def test_a_fatal_answer_ends_the_service_by_name() -> None:
    controller = Controller(answer=Fatal(problem="an instance named me is registered already"))
    async with controller_and_client(controller) as (_, events):
        await until(events.changed, lambda: events.fatal)
        assert events.fatal == ["an instance named me is registered already"]


async def test_a_wrong_secret_is_hopeless() -> None:
    async with controller_and_client(Controller(), secret=b"another secret") as (_, events):
        await until(events.changed, lambda: events.fatal)
        assert "wrong_secret" in events.fatal[0]


async def test_a_controller_that_drains_is_tried_again() -> None:
    controller = Controller(refuse=Refused(code="draining", problem="stopping"))
    refused = asyncio.Event()

    def refuse_once(_: Identity) -> Refused | None:
        answer, controller.refuse = controller.refuse, None
        refused.set()
        return answer

    controller.admit = refuse_once  # type: ignore[method-assign]
    async with controller_and_client(controller) as (_, events):
        await controller.heard(Register)
        assert refused.is_set()
        assert not events.fatal


# -- peers ---------------------------------------------------------------------------------------------------------


@dataclass
class Peer:
    """One instance that listens; its links in order."""

    listener: Listener
    links: list[Link]
    member: Member


@dataclass
class Handler:
    """Of both ends; takes everything."""

    links: list[Link] = field(default_factory=list)

    def on_message(self, link: Link, request_id: int, message: Message) -> None:
        return None

    def on_frame(self, link: Link, frame: InFrame) -> None:
        frame.release()

    def on_closed(self, link: Link, error: LinkError) -> None:
        return None


@contextlib.asynccontextmanager
async def listening(name: str, *, incarnation: str = "first") -> AsyncIterator[Peer]:
    listener = await listen(
        "inproc",
        "",
        0,
        identity=identity("expert", name, incarnation=incarnation),
        secret=SECRET,
        handler_factory=lambda _: Handler(),
    )
    member = Member(
        role="expert", instance=name, node="n", host="", port=listener.port, incarnation=incarnation, state="ready"
    )
    try:
        yield Peer(listener, [], member)
    finally:
        await listener.close()


@contextlib.asynccontextmanager
async def peer_set() -> AsyncIterator[tuple[PeerSet, asyncio.Event]]:
    changed = asyncio.Event()
    peers = PeerSet(
        role="expert",
        identity=identity("attention", "attention-0"),
        secret=SECRET,
        transport="inproc",
        handler=Handler(),
        on_change=changed.set,
    )
    try:
        yield peers, changed
    finally:
        await peers.close("the test is over")


async def test_every_member_of_the_role_is_linked_and_no_other() -> None:
    async with listening("expert-0") as first, listening("expert-1") as second, peer_set() as (peers, changed):
        failed = msgspec.structs.replace(second.member, instance="expert-2", state="failed")
        other = msgspec.structs.replace(second.member, instance="gateway-0", role="gateway")
        peers.update([first.member, second.member, failed, other])
        await until(changed, lambda: len(peers.links) == 2)
        assert sorted(peers.links) == ["expert-0", "expert-1"]
        assert peers.unreachable() == []


async def test_a_broken_link_is_dialled_again() -> None:
    async with listening("expert-0") as peer, peer_set() as (peers, changed):
        peers.update([peer.member])
        await until(changed, lambda: peers.links)
        before = peers.links["expert-0"]
        peer.listener.links[0].abort("broken")
        await until(changed, lambda: peers.links.get("expert-0") not in (None, before))


async def test_a_restarted_instance_is_dialled_afresh() -> None:
    async with peer_set() as (peers, changed):
        async with listening("expert-0") as old:
            peers.update([old.member])
            await until(changed, lambda: peers.links)
        async with listening("expert-0", incarnation="second") as new:
            peers.update([new.member])
            await until(
                changed, lambda: "expert-0" in peers.links and peers.links["expert-0"].peer.incarnation == "second"
            )


async def test_an_instance_that_left_is_missed_by_nobody_who_hears_of_it() -> None:
    async with listening("expert-0") as peer, peer_set() as (peers, changed):
        heard: list[list[str]] = []

        def on_change() -> None:
            heard.append(peers.unreachable())
            changed.set()

        peers.update([peer.member])
        await until(changed, lambda: peers.links)
        peers._on_change = on_change
        peers.update([])  # it drains: out of the view, and its link closes after that
        peer.listener.links[0].abort("the instance stops")
        await until(changed, lambda: heard)
        assert heard == [[]]


async def test_a_failed_instance_is_let_go() -> None:
    async with listening("expert-0") as peer, peer_set() as (peers, changed):
        peers.update([peer.member])
        await until(changed, lambda: peers.links)
        link = peers.links["expert-0"]
        peers.update([msgspec.structs.replace(peer.member, state="failed")])
        assert link.closed
        assert not peers.links
        assert peers.unreachable() == []


async def test_a_view_that_does_not_know_a_linked_instance_takes_nothing_away() -> None:
    async with listening("expert-0") as peer, peer_set() as (peers, changed):
        peers.update([peer.member])
        await until(changed, lambda: peers.links)
        link = peers.links["expert-0"]
        peers.update([])  # a controller that has just restarted
        assert not link.closed
        peers.update([peer.member])
        assert peers.links == {"expert-0": link}


async def test_an_instance_that_is_not_listed_is_not_dialled_again() -> None:
    async with listening("expert-0") as peer, peer_set() as (peers, changed):
        peers.update([peer.member])
        await until(changed, lambda: peers.links)
        peers.update([])
        changed.clear()
        peer.listener.links[0].abort("left")
        await until(changed, lambda: not peers.links)
        assert peers.unreachable() == []


async def test_who_cannot_be_reached_is_named_with_the_reason() -> None:
    async with listening("expert-0") as gone:
        member = gone.member
    async with peer_set() as (peers, _):
        peers.update([member])
        await eventually(lambda: "connecting" not in str(peers.unreachable()))  # a failed attempt changes nothing else
        (problem,) = peers.unreachable()
        assert problem.startswith("expert-0: ")


@pytest.mark.parametrize("state", ["joining", "draining"])
async def test_who_joins_or_drains_is_linked_too(state: str) -> None:
    async with listening("expert-0") as peer, peer_set() as (peers, changed):
        peers.update([msgspec.structs.replace(peer.member, state=state)])
        await until(changed, lambda: peers.links)
