"""A whole expert-server beside a scripted controller: what it registers and reports, and how it leaves."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from janus.config.options import CommonOptions, ExpertOptions
from janus.errors import LinkError, PeerRefused
from janus.messages import Message
from janus.messages.control import (
    ClusterView,
    Heartbeat,
    Leave,
    LoadPlacement,
    Member,
    PlacementLoaded,
    PlacementTable,
    Register,
)
from janus.model.checkpoint import Checkpoint
from janus.runtime.service import ServiceContext
from janus.transport import InFrame, Kind, Link, connect, listen
from janus_expert_server.capacity import replica_capacity
from janus_expert_server.service import is_released, serve
from tests.runtime.conftest import identity
from tests.runtime.test_expert_engine import dispatch
from tests.runtime.test_membership_links import Controller, until
from tests.runtime.world import LIMIT_S, SECRET, batch, table

BOTH = table([0, 1, 2, 3, -1], [4, 5, 6, 7, -1])
SECOND_ALONE = table([4, 5, 6, 7, 0, 1, 2, 3], epoch=2, names=("expert-1",))


def member(name: str, state: str = "ready", role: str = "expert") -> Member:
    return Member(role=role, instance=name, node="n", host="h", port=1, incarnation=name, state=state)  # type: ignore[arg-type]


def view(placement: PlacementTable | None, *members: Member, oldest_epoch: int = 1) -> ClusterView:
    return ClusterView(version=1, members=list(members), missing=[], placement=placement, oldest_epoch=oldest_epoch)


class Answers:
    """What comes back to an attention instance."""

    def __init__(self) -> None:
        self.kinds: asyncio.Queue[object] = asyncio.Queue(100)

    def on_frame(self, link: Link, frame: InFrame) -> None:
        self.kinds.put_nowait(frame.header.kind)
        frame.release()

    def on_message(self, link: Link, request_id: int, message: Message) -> None:
        self.kinds.put_nowait(message)

    def on_closed(self, link: Link, error: LinkError) -> None:
        pass


@dataclass
class Server:
    """One expert-server, its controller's end, and its task."""

    context: ServiceContext
    controller: Controller
    task: asyncio.Task[None]

    @property
    def register(self) -> Register:
        return next(message for message in self.controller.said if isinstance(message, Register))

    def say(self, message: Message) -> None:
        self.controller.links[-1].post_message(message)

    async def reported(self, condition: Callable[[Heartbeat], bool]) -> Heartbeat:
        """Return the first heartbeat from now on of which ``condition`` holds."""
        start = len(self.controller.said)

        def found() -> list[Heartbeat]:
            return [m for m in self.controller.said[start:] if isinstance(m, Heartbeat) and condition(m)]

        await until(self.controller.changed, found)
        return found()[0]

    async def load(self, placement: PlacementTable) -> PlacementLoaded:
        self.say(LoadPlacement(table=placement))

        def loaded() -> list[PlacementLoaded]:
            return [m for m in self.controller.said if isinstance(m, PlacementLoaded) and m.epoch == placement.epoch]

        await until(self.controller.changed, loaded)
        return loaded()[0]

    async def dial(self, name: str = "attention-0") -> tuple[Link, Answers]:
        answers = Answers()
        role = "expert" if name.startswith("expert") else "attention"
        link = await connect(
            "tcp",
            "127.0.0.1",
            self.register.port,
            identity=identity(role, name),  # type: ignore[arg-type]
            secret=SECRET,
            handler=answers,
        )
        return link, answers

    async def ask(self, link: Link, answers: Answers, *, epoch: int) -> object:
        """Return the kind of frame, or the message, that answers a dispatch for slot 0."""
        x_TH, _, weights_TK = batch(1, 32)
        slots_TK = torch.tensor([[0, -1, -1]], dtype=torch.int32)
        given = dispatch(x_TH, slots_TK, weights_TK, epoch=epoch)
        frame, header = link.allocate(len(given.payload)), given.header
        frame.payload[:] = given.payload
        link.post(
            frame,
            kind=Kind.DISPATCH,
            request_id=1,
            epoch=epoch,
            dtype=header.dtype,
            top_k=header.top_k,
            rows=header.rows,
            cols=header.cols,
        )
        async with asyncio.timeout(LIMIT_S):
            return await answers.kinds.get()

    async def ended(self) -> None:
        async with asyncio.timeout(LIMIT_S):
            await self.task


@contextlib.asynccontextmanager
async def expert_server(model: Path, *, drain_timeout_s: float = LIMIT_S, **options: object) -> AsyncIterator[Server]:
    controller = Controller()
    listener = await listen(
        "tcp",
        "127.0.0.1",
        0,
        identity=identity("controller", "controller-0"),
        secret=SECRET,
        handler_factory=lambda _: controller,
    )
    common = CommonOptions(
        controller=f"127.0.0.1:{listener.port}",
        transport="tcp",
        secret=SECRET.decode(),
        name="expert-0",
        node="n",
        ops_port=-1,
        drain_timeout_s=drain_timeout_s,
    )
    context = ServiceContext("expert", common)
    expert = ExpertOptions(common=common, model=model, device="cpu", threads=1, **options)  # type: ignore[arg-type]
    task = asyncio.create_task(serve(context, expert), name="expert-server")
    try:
        await controller.heard(Register)
        yield Server(context, controller, task)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await listener.close()


async def test_it_registers_what_it_can_hold(model_dir: Path) -> None:
    async with expert_server(model_dir, slots=0, speed=2.5) as server:
        assert (server.register.slots, server.register.capacity, server.register.speed) == (0, 8, 2.5)


def test_capacity_is_what_free_memory_holds(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    config = checkpoint.config
    per_slot = 2 * 3 * config.hidden_size * config.moe_intermediate_size * 4  # two MoE layers
    for free, expected in ((8 * per_slot, 4), (0, 1), (1 << 40, 8)):
        memory = type("Memory", (), {"available": free})
        monkeypatch.setattr("psutil.virtual_memory", lambda memory=memory: memory)
        assert replica_capacity(config, torch.float32, torch.device("cpu")) == expected


async def test_a_failed_load_degrades_and_the_next_one_heals(model_dir: Path) -> None:
    async with expert_server(model_dir) as server:
        assert (await server.load(BOTH)).error == ""
        await server.reported(lambda beat: beat.state == "ready" and not beat.reason)
        bad = table([0, 1, 2, 3, 4], [4, 5, 6, 7, 99], epoch=2)
        assert "99" in (await server.load(bad)).error
        beat = await server.reported(lambda beat: "epoch 2" in beat.reason)
        assert (beat.state, beat.loaded_epoch) == ("ready", 1)
        assert server.context.health.report()["status"] == "degraded"
        link, answers = await server.dial()
        assert await server.ask(link, answers, epoch=1) is Kind.COMBINE
        assert (await server.load(table([0, 1, 2, 3, 4], [4, 5, 6, 7, -1], epoch=3))).error == ""
        await server.reported(lambda beat: beat.state == "ready" and not beat.reason)
        await link.close("over")


async def test_without_any_replica_a_failed_load_is_no_readiness(model_dir: Path) -> None:
    async with expert_server(model_dir) as server:
        bad = table([0, 1, 2, 3, 4], [4, 5, 6, 7, 99])
        assert (await server.load(bad)).error
        assert (await server.reported(lambda beat: "epoch 1" in beat.reason)).state == "joining"


async def test_what_the_view_retires_is_given_back(model_dir: Path) -> None:
    async with expert_server(model_dir) as server:
        await server.load(BOTH)
        await server.load(table([0, 1, -1, -1, 7], [4, 5, 6, 3, 2], epoch=2))
        link, answers = await server.dial()
        assert await server.ask(link, answers, epoch=1) is Kind.COMBINE
        server.say(view(BOTH, member("expert-0"), member("expert-1"), oldest_epoch=2))
        async with asyncio.timeout(LIMIT_S):
            while await server.ask(link, answers, epoch=1) is Kind.COMBINE:
                pass  # the view is on its way
        assert await server.ask(link, answers, epoch=2) is Kind.COMBINE
        await link.close("over")


async def test_a_draining_instance_serves_until_nobody_plans_with_it(model_dir: Path) -> None:
    async with expert_server(model_dir) as server:
        await server.load(BOTH)
        others = (member("attention-0", role="attention"), member("expert-0"), member("expert-1"))
        server.say(view(BOTH, *others))
        await server.reported(lambda beat: beat.loaded_epoch == 1)
        server.context.stop.set()
        await server.controller.heard(Leave)
        # Old links and new ones: an attention instance may have to dial again meanwhile.
        link, answers = await server.dial()
        assert await server.ask(link, answers, epoch=1) is Kind.COMBINE
        # The next placement is in force, but a dispatch of the last one may still come.
        server.say(view(SECOND_ALONE, *others, oldest_epoch=1))
        second, more = await server.dial("attention-1")
        assert await server.ask(second, more, epoch=1) is Kind.COMBINE
        await server.reported(lambda beat: beat.state == "draining")
        assert not server.task.done()
        server.say(view(SECOND_ALONE, *others, oldest_epoch=2))
        await server.ended()
        with pytest.raises(LinkError):
            await server.dial("attention-2")


async def test_a_controller_that_is_lost_ends_the_wait(model_dir: Path) -> None:
    async with expert_server(model_dir) as server:
        await server.load(BOTH)
        server.say(view(BOTH, member("attention-0", role="attention"), member("expert-0"), member("expert-1")))
        server.context.stop.set()
        await server.controller.heard(Leave)
        server.controller.links[-1].abort("killed")
        await server.ended()


async def test_the_wait_has_a_limit(model_dir: Path) -> None:
    async with expert_server(model_dir, drain_timeout_s=0.2) as server:
        await server.load(BOTH)
        server.say(view(BOTH, member("attention-0", role="attention"), member("expert-0"), member("expert-1")))
        server.context.stop.set()
        await server.ended()


async def test_expert_instances_may_link_and_gateways_may_not(model_dir: Path) -> None:
    async with expert_server(model_dir) as server:
        link, _ = await server.dial("expert-1")
        await link.close("over")
        with pytest.raises(PeerRefused, match="wrong_role"):
            await connect(
                "tcp",
                "127.0.0.1",
                server.register.port,
                identity=identity("gateway", "gateway-0"),
                secret=SECRET,
                handler=Answers(),
            )


ATTENTION = member("attention-0", role="attention")
RELEASED = {
    "planned with": (view(BOTH, ATTENTION, member("expert-0"), member("expert-1")), False),
    "nothing is in force": (view(None, ATTENTION, member("expert-0"), member("expert-1")), True),
    "alone": (view(BOTH, ATTENTION, member("expert-0")), True),
    "the others leave too": (view(BOTH, ATTENTION, member("expert-0"), member("expert-1", "draining")), True),
    "one that joins may take over": (view(BOTH, ATTENTION, member("expert-0"), member("expert-2", "joining")), False),
    "still dispatched to": (view(SECOND_ALONE, ATTENTION, member("expert-0"), member("expert-1")), False),
    "over": (view(SECOND_ALONE, ATTENTION, member("expert-0"), member("expert-1"), oldest_epoch=2), True),
    "nobody dispatches": (view(BOTH, member("expert-0"), member("expert-1")), True),
}


@pytest.mark.parametrize("case", RELEASED)
def test_when_an_instance_may_go(case: str) -> None:
    seen, released = RELEASED[case]
    assert is_released(seen, "expert-0") is released
