"""Replicas from another expert instance over real links, and what happens when that one does not deliver."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch

from janus.config.options import LoadSource
from janus.errors import LinkError
from janus.exchange.local import LocalExchange
from janus.messages import Message
from janus.messages.control import ClusterView, FetchReplica, Identity, Member, PlacementLoaded, ReplicaRefused
from janus.model.checkpoint import Checkpoint
from janus.model.experts import ExpertBank
from janus.runtime import replica_fetch, replica_offers
from janus.runtime.expert_engine import ExpertEngine
from janus.runtime.replica_links import ReplicaLinks
from janus.transport import InFrame, Kind, Link, LinkHandler, TransportKind, connect, listen, shared_pool
from tests.runtime.conftest import identity
from tests.runtime.test_replica_loading import check
from tests.runtime.world import LIMIT_S, SECRET, table
from tests.transport.helpers import needs_shared_memory

#: expert-0 has everything; expert-1 gets half of it in epoch 2.
HELD = table([0, 1, 2, 3, 4, 5, 6, 7])
WANTED = table([0, 1, 2, 3, 4, 5, 6, 7], [4, 5, 6, 7, -1, -1, -1, -1], epoch=2)
HOSTS: dict[TransportKind, str] = {"ucx": "127.0.0.1", "tcp": "127.0.0.1", "inproc": "", "shm": ""}


class Relaying:
    """In front of the engine that has the replicas: hands everything on. Subclasses do not."""

    def __init__(self, engine: ExpertEngine) -> None:
        self.engine = engine
        self.asked: list[FetchReplica] = []

    def on_message(self, link: Link, request_id: int, message: Message) -> None:
        assert isinstance(message, FetchReplica)
        self.asked.append(message)
        self.answer(link, request_id, message)

    def answer(self, link: Link, request_id: int, message: FetchReplica) -> None:
        self.engine.on_message(link, request_id, message)

    def on_frame(self, link: Link, frame: InFrame) -> None:
        self.engine.on_frame(link, frame)

    def on_closed(self, link: Link, error: LinkError) -> None:
        self.engine.on_closed(link, error)


class Dies(Relaying):
    """After the first piece."""

    def answer(self, link: Link, request_id: int, message: FetchReplica) -> None:
        if message.offset:
            link.abort("killed")
        else:
            super().answer(link, request_id, message)


class Refuses(Relaying):
    def answer(self, link: Link, request_id: int, message: FetchReplica) -> None:
        link.reply(request_id, ReplicaRefused(code="busy", problem="no time"))


class Silent(Relaying):
    def answer(self, link: Link, request_id: int, message: FetchReplica) -> None:
        pass


class Garbage(Relaying):
    """Noise, under the checksum of what was asked for."""

    noise, shorter, other = True, 0, 0

    def answer(self, link: Link, request_id: int, message: FetchReplica) -> None:
        nbytes = message.nbytes - self.shorter
        frame = link.allocate(nbytes)
        frame.payload[:] = 7
        checksum = zlib.crc32(frame.payload.data) ^ self.noise
        link.post(
            frame,
            kind=Kind.REPLICA,
            request_id=request_id,
            layer=message.moe_layer,
            rows=message.expert + self.other,
            cols=checksum,
        )


class TooShort(Garbage):
    noise, shorter = False, 1


class Another(Garbage):
    noise, other = False, 1


class Twice(Relaying):
    """An answer that nobody asked for before each that somebody did."""

    def answer(self, link: Link, request_id: int, message: FetchReplica) -> None:
        link.post(link.allocate(8), kind=Kind.REPLICA, request_id=request_id + 1000)
        link.reply(request_id + 1000, ReplicaRefused(code="busy", problem="whom?"))
        super().answer(link, request_id, message)


@dataclass
class Two:
    """expert-0, which has the replicas, and expert-1, which wants some."""

    holder: ExpertEngine
    front: Relaying
    wanter: ExpertEngine
    links: ReplicaLinks

    async def load(self) -> PlacementLoaded:
        async with asyncio.timeout(LIMIT_S):
            report = await self.wanter.load(WANTED)
        assert report.error == ""
        return report

    def same(self) -> bool:
        """Whether expert-1 has exactly the bytes that expert-0 has."""
        banks = [engine._replicas.bank for engine in (self.holder, self.wanter)]
        for layer in range(2):
            for expert in range(4, 8):
                mine, theirs = (bank.weights(layer, expert) for bank in banks if bank is not None)
                if mine is None or theirs is None or not torch.equal(mine, theirs):
                    return False
        return True


StartTwo = Callable[..., Awaitable[Two]]


@pytest.fixture
async def two(checkpoint: Checkpoint) -> AsyncIterator[StartTwo]:
    closing: list[Callable[[], object]] = []

    async def start(
        front: type[Relaying] = Relaying,
        *,
        kind: TransportKind = "inproc",
        source: LoadSource = "peer",
        kernels: tuple[bool, bool] = (True, True),
        rate: float = 0.0,
    ) -> Two:
        def make(name: str, links: ReplicaLinks | None, kernels: bool) -> ExpertEngine:
            engine = ExpertEngine(
                checkpoint=checkpoint,
                config=checkpoint.config,
                dtype=torch.float32,
                device=torch.device("cpu"),
                instance=name,
                make_bank=partial(ExpertBank, kernels=kernels),
                reach=links,
                load_source=source,
                load_rate=rate,
            )
            closing.append(engine.close)
            return engine

        holder = make("expert-0", None, kernels[0])
        assert (await holder.load(HELD)).error == ""
        handler = front(holder)

        def factory(_: Identity) -> LinkHandler:
            return handler

        pool = shared_pool() if kind == "shm" else None
        listener = await listen(
            kind,
            HOSTS[kind],
            0,
            identity=identity("expert", "expert-0"),
            secret=SECRET,
            handler_factory=factory,
            pool=pool,
        )
        closing.append(listener.close)
        links = ReplicaLinks(
            identity=identity("expert", "expert-1"),
            secret=SECRET,
            transport=kind,
            siblings={},
            handler=lambda: wanter,
            pool=pool,
        )
        closing.append(links.rest)
        wanter = make("expert-1", links, kernels[1])
        member = Member(
            role="expert",
            instance="expert-0",
            node="n",
            host=HOSTS[kind],
            port=listener.port,
            incarnation="expert-0",
            state="ready",
        )
        wanter.on_view(ClusterView(version=1, members=[member], missing=[], placement=HELD))
        links.update([member])
        return Two(holder, handler, wanter, links)

    yield start
    for close in reversed(closing):
        closed = close()
        if isinstance(closed, Awaitable):
            await closed


@pytest.mark.parametrize("kind", ["ucx", "tcp", "inproc", pytest.param("shm", marks=needs_shared_memory)])
async def test_a_replica_of_a_peer_is_that_of_the_checkpoint_bit_for_bit(
    kind: TransportKind, two: StartTwo, local: LocalExchange, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica_fetch, "PIECE_BYTES", 1000)  # many pieces, and a last one that is smaller
    pair = await two(kind=kind)
    report = await pair.load()
    bank = pair.wanter._replicas.bank
    assert bank is not None
    assert (report.bytes_read, report.bytes_from_peers) == (0, 8 * bank.expert_nbytes)
    assert pair.holder.report()["sent_to_peers"] == 8 * bank.expert_nbytes
    assert pair.same()
    await check(pair.wanter, local, {0: 4, 1: 5, 2: 6, 3: 7}, epoch=2)


async def test_without_kernels_the_weights_travel_as_rows(two: StartTwo, local: LocalExchange) -> None:
    pair = await two(kernels=(False, False))
    # As on the step loop, where everything is inference; the loader's thread is not.
    with torch.inference_mode():
        report = await pair.load()
    assert report.bytes_read == 0
    assert pair.same()
    await check(pair.wanter, local, {0: 4, 3: 7}, epoch=2)


async def test_auto_measures_both_sources(two: StartTwo) -> None:
    pair = await two(source="auto")
    report = await pair.load()
    assert report.bytes_read > 0
    assert report.bytes_from_peers > 0
    assert set(pair.wanter._sources.speeds) == {"", "expert-0"}
    assert pair.same()


async def test_who_has_what_may_become_known_while_loading(
    two: StartTwo, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = await two()
    told, pair.wanter._replicas.in_force = pair.wanter._replicas.in_force, None
    read = checkpoint.read_expert

    def learn(*args: object) -> object:
        pair.wanter._replicas.in_force = told
        return read(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(checkpoint, "read_expert", learn)
    report = await pair.load()
    assert report.bytes_from_peers == 7 * report.bytes_read > 0


async def test_disk_asks_nobody(two: StartTwo) -> None:
    pair = await two(source="disk")
    assert (await pair.load()).bytes_from_peers == 0
    assert pair.front.asked == []


@pytest.mark.parametrize("front", [Dies, Refuses, Silent, Garbage, TooShort, Another])
async def test_a_peer_that_does_not_deliver_is_replaced_by_the_checkpoint(
    front: type[Relaying], two: StartTwo, local: LocalExchange, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica_fetch, "PIECE_BYTES", 1000)
    monkeypatch.setattr(replica_fetch, "PIECE_TIMEOUT_S", 0.05)
    pair = await two(front)
    report = await pair.load()
    assert pair.front.asked
    assert (report.bytes_from_peers, report.bytes_read > 0) == (0, True)
    assert pair.same()
    await check(pair.wanter, local, {0: 4, 1: 5, 2: 6, 3: 7}, epoch=2)


async def test_a_peer_that_stopped_in_the_middle_is_not_asked_for_the_next_replica(
    two: StartTwo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica_fetch, "PIECE_TIMEOUT_S", 0.05)
    pair = await two(Silent, source="auto")
    await pair.load()
    assert len(pair.front.asked) == 1


async def test_a_peer_that_is_not_reachable_is_replaced_by_the_checkpoint(two: StartTwo) -> None:
    pair = await two()
    gone = Member(role="expert", instance="expert-0", node="n", host="", port=1, incarnation="x", state="ready")
    pair.links.update([gone])
    assert (await pair.load()).bytes_from_peers == 0
    assert pair.same()


async def test_answers_that_nobody_waits_for_are_dropped(two: StartTwo) -> None:
    pair = await two(Twice)
    assert (await pair.load()).bytes_read == 0
    assert pair.same()


async def test_weights_that_lie_otherwise_are_not_taken(two: StartTwo, local: LocalExchange) -> None:
    pair = await two(kernels=(False, True))
    bank = pair.wanter._replicas.bank
    if bank is not None and not bank.takes_addresses:
        pytest.skip("no kernels here: both lie alike")
    assert (await pair.load()).bytes_from_peers == 0
    await check(pair.wanter, local, {0: 4, 1: 5}, epoch=2)


async def test_what_a_peer_has_given_back_is_read_and_the_peer_asked_again_for_others(two: StartTwo) -> None:
    pair = await two()
    kept = table([0, 1, 2, 3, -1, -1, 6, 7], [4, 5, -1, -1, -1, -1, -1, -1], epoch=2)
    await pair.holder.load(kept)
    pair.holder.on_view(ClusterView(version=2, members=[], missing=[], placement=kept, oldest_epoch=2))
    report = await pair.load()
    assert report.bytes_from_peers == report.bytes_read > 0


async def test_a_replica_that_is_taken_away_while_it_is_copied_is_not_sent(
    two: StartTwo, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = await two()
    put = replica_offers._put

    def slow_put(*args: object) -> int:
        # The copy is under way when the loop takes the replica away.
        taken = asyncio.run_coroutine_threadsafe(take_away(), loop)
        taken.result(LIMIT_S)
        return put(*args)  # type: ignore[arg-type]

    async def take_away() -> None:
        pair.holder.on_view(ClusterView(version=2, members=[], missing=[], placement=None, oldest_epoch=9))

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(replica_offers, "_put", slow_put)
    report = await pair.load()
    assert (report.bytes_from_peers, report.replicas) == (0, 8)


async def test_a_piece_that_there_is_no_memory_for_is_refused_and_the_next_one_sent(
    two: StartTwo, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = await two()
    allocate, failed = Link.allocate, []

    def scarce(link: Link, nbytes: int) -> object:
        if link.peer.instance == "expert-1" and not failed:
            failed.append(nbytes)
            raise MemoryError("none left")
        return allocate(link, nbytes)

    monkeypatch.setattr(Link, "allocate", scarce)
    report = await pair.load()
    assert failed
    assert report.bytes_from_peers == 7 * report.bytes_read > 0


async def test_the_rate_is_kept(two: StartTwo) -> None:
    pair = await two(rate=200_000.0)  # 8 replicas of 12 KB; a quarter of a second of it passes at once
    loop = asyncio.get_running_loop()
    bank = pair.holder._replicas.bank
    assert bank is not None
    started = loop.time()
    await pair.load()
    assert loop.time() - started >= 7 * bank.expert_nbytes / 200_000 - 0.25 > 0


BAD = {
    "layer": FetchReplica(moe_layer=9, expert=0, offset=0, nbytes=8, layout=""),
    "negative layer": FetchReplica(moe_layer=-1, expert=0, offset=0, nbytes=8, layout=""),
    "expert": FetchReplica(moe_layer=0, expert=99, offset=0, nbytes=8, layout=""),
    "past the end": FetchReplica(moe_layer=0, expert=0, offset=12_285, nbytes=8, layout=""),
    "negative": FetchReplica(moe_layer=0, expert=0, offset=-8, nbytes=8, layout=""),
    "nothing": FetchReplica(moe_layer=0, expert=0, offset=0, nbytes=0, layout=""),
    "too much": FetchReplica(moe_layer=0, expert=0, offset=0, nbytes=1 << 30, layout=""),
}


@pytest.mark.parametrize("bad", BAD)
async def test_a_request_that_makes_no_sense_is_refused_by_name(bad: str, two: StartTwo) -> None:
    pair = await two()
    bank = pair.holder._replicas.bank
    assert bank is not None
    link = await pair.links.to("expert-0")
    import msgspec

    message = msgspec.structs.replace(BAD[bad], layout=bank.layout)
    answer = await link.call(message, timeout_s=LIMIT_S)
    assert isinstance(answer, ReplicaRefused)
    assert answer.code == ("not_here" if bad in ("layer", "negative layer", "expert") else "bad_request")


async def test_only_expert_instances_get_weights(two: StartTwo) -> None:
    pair = await two()
    bank = pair.holder._replicas.bank
    assert bank is not None
    listener = await listen(
        "inproc",
        "",
        0,
        identity=identity("expert", "expert-0"),
        secret=SECRET,
        handler_factory=lambda _: pair.front,
    )
    link = await connect(
        "inproc", "", listener.port, identity=identity("tool", "tool-0"), secret=SECRET, handler=pair.front
    )
    message = FetchReplica(moe_layer=0, expert=0, offset=0, nbytes=8, layout=bank.layout)
    answer = await link.call(message, timeout_s=LIMIT_S)
    assert isinstance(answer, ReplicaRefused)
    assert "tool" in answer.problem
    await link.close("over")
    await listener.close()
