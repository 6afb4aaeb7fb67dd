"""The controller's autoscaler: what it observes of the membership, what it does, and what it shows of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from prometheus_client import CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.testclient import TestClient
from structlog.testing import capture_logs

from janus.cluster.scalers import ScalingFailed
from janus.config.options import CommonOptions, ControllerOptions
from janus.config.scaling import ScalingOptions
from janus.core.latency import LatencyHistogram
from janus.core.membership import Membership
from janus.core.membership_events import Event, ExpectedSet, LeaveSeen
from janus.core.scaling import Counts, Decision, Reason
from janus.core.scaling.learned import LearnedModel
from janus.core.scaling.steps import steps
from janus.errors import ConfigError
from janus.messages.control import Heartbeat, Traffic
from janus_placement_controller import autoscaling
from janus_placement_controller.autoscaling import Scaling, scaling_config
from janus_placement_controller.scaling_http import scaling_route
from janus_placement_controller.scaling_metrics import ScalingMetrics
from tests.core.cluster_harness import beat, cluster, epoch_of, loaded, lost, registered
from tests.waiting import LIMIT_S, turns

OPTIONS = ScalingOptions(
    autoscale="on", slo_tpot_s=0.1, scale_interval_s=5.0, scale_look_back_s=10.0, scale_timeout_s=2.0
)


@dataclass
class Fake:
    """A scaler that adds and removes members at once, or fails."""

    world: World
    name: str = "fake"
    awaits: bool = True
    asked: list[Counts] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    gate: asyncio.Event | None = None

    async def scale(self, wanted: Counts, *, timeout_s: float) -> None:
        self.asked.append(wanted)
        if self.gate is not None:
            await self.gate.wait()
        if self.failures:
            raise ScalingFailed(self.failures.pop(0))
        self.world.become(wanted)


class World:
    """A membership with its members at work, gateways that report, and a clock that tests set."""

    def __init__(self, options: ScalingOptions = OPTIONS, *, dry: bool = False, experts: int = 1) -> None:
        self.now = 100.0
        self.membership: Membership = cluster(experts=experts, now=self.now)
        self.events: list[Event] = []
        self.scaler = Fake(self)
        config = scaling_config(options, monolithic=False)
        self.registry = CollectorRegistry()
        self.scaling = Scaling(
            options,
            config,
            self.membership,
            apply=self.apply,
            scaler=None if dry else self.scaler,
            model=LearnedModel(config),
            metrics=ScalingMetrics(self.registry),
            clock=lambda: self.now,
        )
        self.arrived = 0
        self.tokens = 0
        self.busy_s = 0.0
        self.tpot = LatencyHistogram()
        for name in self.membership.missing:
            self.join(name)
        self.settle()

    def apply(self, event: Event) -> None:
        self.events.append(event)
        self.membership.handle(event)

    def join(self, name: str) -> None:
        self.membership.handle(registered(name, now=self.now))
        self.membership.handle(beat(name, now=self.now))

    def settle(self) -> None:
        for _ in range(10):
            for epoch in {int(text.split()[-1]) for text in self.membership.waiting_for if "loading" in text}:
                for member in self.membership.view.members:
                    if member.role == "expert":
                        self.membership.handle(loaded(member.instance, epoch, now=self.now))
            oldest = epoch_of(self.membership.view) or 0
            for member in self.membership.view.members:
                if member.role == "attention":
                    self.membership.handle(beat(member.instance, now=self.now, oldest_epoch=oldest))

    def become(self, counts: Counts) -> None:
        """What ``janus up`` does, without its processes."""
        size = ExpectedSet(gateways=1, attention=counts.attention, experts=counts.experts, now=self.now)
        self.membership.handle(size)
        wanted = {"attention": counts.attention, "expert": counts.experts}
        for role, count in wanted.items():
            there = [m.instance for m in self.membership.view.members if m.role == role and m.state != "failed"]
            for index in range(len(there), count):
                self.join(f"{role}-{index}")
            for name in there[count:]:
                self.membership.handle(LeaveSeen(instance=name, reason="scaled", now=self.now))
                self.settle()
                self.membership.handle(lost(name, now=self.now))
        self.settle()

    def second(self, *, requests: int = 0, tpot_s: float = 0.05, running: int = 0, waiting: int = 0) -> None:
        """One second of the cluster's life: everybody reports once."""
        self.now += 1.0
        self.arrived += requests
        self.busy_s += requests * 10 * tpot_s
        self.tokens += 10 * requests
        if requests:
            self.tpot.add(tpot_s, requests)
        traffic = Traffic(
            arrived=self.arrived,
            finished=self.arrived,
            prompt_tokens=5 * self.arrived,
            answer_tokens=self.tokens,
            output_tokens=self.tokens,
            gaps_s=self.busy_s,
            gaps=self.tokens,
            firsts=self.arrived,
            first_s=0.1 * self.arrived,
            tpot=self.tpot.pairs(),
        )
        self.scaling.on_traffic("gateway-0", "i1", traffic)
        for member in self.membership.view.members:
            if member.role in ("attention", "expert"):
                report = Heartbeat(state="ready", running=running, waiting=waiting, max_running=64)
                self.scaling.on_heartbeat(member.instance, "i1", report)

    async def live(self, seconds: int, **load: Any) -> list[Decision]:
        """So many seconds with a look after each; operations are run to their end."""
        found = []
        for _ in range(seconds):
            self.second(**load)
            decision = self.scaling.look()
            if decision.due:
                found.append(decision)
            await turns(10)
        return found

    async def ended(self) -> None:
        """Wait for the end of the operation that is under way."""
        if self.scaling._operation is not None:
            async with asyncio.timeout(LIMIT_S):
                await asyncio.wait({self.scaling._operation})

    @property
    def present(self) -> Counts:
        return self.scaling._there(self.membership.view)


@pytest_asyncio.fixture
async def world() -> AsyncIterator[World]:
    yield World()


async def test_slow_tokens_bring_instances_one_at_a_time_and_quiet_takes_them_away(world: World) -> None:
    with capture_logs() as logs:
        await world.live(8, requests=5, tpot_s=0.3, running=20)
    assert world.present.total > 2
    start = Counts(attention=1, experts=1)
    for before, after in zip([start, *world.scaler.asked], world.scaler.asked, strict=False):
        assert abs(after.total - before.total) == 1
    decided = [event for event in logs if event["event"] == "scaling_decided"]
    assert decided[0]["reason"] == "slo"
    assert decided[0]["acts"] is True
    assert "exceeds the SLO of 100 ms" in decided[0]["why"]
    await world.live(120)
    assert world.present == start
    assert world.scaling.decisions[-1].decision.reason in (Reason.STEADY, Reason.SURPLUS)


async def test_a_dry_run_decides_and_does_nothing() -> None:
    world = World(
        ScalingOptions(autoscale="dry-run", slo_tpot_s=0.1, scale_interval_s=5, scale_look_back_s=10), dry=True
    )
    decisions = await world.live(20, requests=5, tpot_s=0.3, running=20)
    assert any(decision.changes for decision in decisions)
    assert world.present == Counts(attention=1, experts=1)
    assert not any(kept.acts for kept in world.scaling.decisions)
    assert world.scaling.status().mode == "dry-run"


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        (lambda world: world.membership.handle(lost("expert-0", now=world.now)), "expert-0"),
        (lambda world: world.membership.handle(registered("attention-7", now=world.now)), "attention-7 is joining"),
        (
            lambda world: world.membership.handle(LeaveSeen(instance="attention-0", reason="x", now=world.now)),
            "attention-0 is draining",
        ),
        (
            lambda world: world.membership.handle(ExpectedSet(gateways=1, attention=2, experts=1, now=world.now)),
            "attention-1 has not registered",
        ),
    ],
    ids=["lost", "joining", "draining", "missing"],
)
async def test_nothing_is_decided_while_the_cluster_changes(trouble: Callable[[World], object], said: str) -> None:
    world = World()
    await world.live(4, requests=1)
    trouble(world)
    decisions = await world.live(20, requests=5, tpot_s=0.5, running=20)
    assert {decision.reason for decision in decisions} == {Reason.BLOCKED}
    assert all(said in decision.why for decision in decisions)
    assert world.scaler.asked == []


async def test_a_controller_that_has_just_started_knows_nothing_and_does_nothing() -> None:
    world = World()
    decisions = []
    for _ in range(30):
        world.now += 1.0
        decisions.append(world.scaling.look())
    due = [decision for decision in decisions if decision.due]
    assert {decision.reason for decision in due} == {Reason.BLOCKED}
    assert "gateway-0 has not reported what clients see" in due[0].why


async def test_an_operation_under_way_is_waited_for_and_a_failed_one_is_not_repeated_at_once() -> None:
    world = World()
    world.scaler.gate = asyncio.Event()
    world.scaler.failures = ["no memory"] * 100
    await world.live(6, requests=5, tpot_s=0.3, running=20)
    assert len(world.scaler.asked) == 1
    assert "scaling 1A1E" in world.scaling.status().operation
    assert (await world.live(6, requests=5, tpot_s=0.3, running=20))[-1].reason is Reason.BLOCKED
    world.scaler.gate.set()
    with capture_logs() as logs:
        decisions = await world.live(20, requests=5, tpot_s=0.3, running=20)
    assert "scaling_failed" in [event["event"] for event in logs]
    assert Reason.BACKOFF in {decision.reason for decision in decisions}
    assert "no memory" in world.scaling.status().problem
    assert len(world.scaler.asked) == 1, "tried again before the pause was over"
    assert world.present == Counts(attention=1, experts=1)


async def test_a_backend_that_does_not_wait_is_waited_for_and_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autoscaling, "_POLL_S", 0.0)
    world = World()
    world.scaler.awaits = False
    await world.live(6, requests=5, tpot_s=0.3, running=20)
    await world.ended()
    assert world.present.total > 2
    sizes = [event for event in world.events if isinstance(event, ExpectedSet)]
    assert sizes, "the controller was not told whom to expect"
    assert (sizes[-1].attention, sizes[-1].experts) == (world.present.attention, world.present.experts)

    stuck = World()
    stuck.scaler.awaits = False
    stuck.scaler.world = World()  # the command succeeds, and nobody comes
    await stuck.live(4, requests=5, tpot_s=0.3, running=20)
    stuck.now += 10.0
    await stuck.ended()
    assert stuck.scaler.asked[0].total == 3
    assert stuck.scaler.asked[-1] == Counts(attention=1, experts=1), "what was begun was not taken back"
    assert "after 2 s" in stuck.scaling.status().problem
    assert stuck.membership.missing == []


async def test_every_expert_keeps_the_replicas_that_it_had() -> None:
    world = World(experts=2)
    placement = world.membership.view.placement
    assert placement is not None
    replicas = min(count for layer in world.membership.report(world.now).replicas for count in layer)
    width = len(placement.slots[0][0])
    await world.live(60)
    assert world.present.experts == min(2, -(-min(2, replicas) * placement.num_experts // width))
    world = World(ScalingOptions(**{**_fields(OPTIONS), "min_replicas": 2}), experts=2)
    await world.live(60)
    assert world.present.experts == 2


async def test_what_was_decided_and_why_can_be_read(world: World) -> None:
    await world.live(8, requests=5, tpot_s=0.3, running=20)
    with TestClient(Starlette(routes=[scaling_route(world.scaling)])) as client:
        report = client.get("/scaling").json()
    assert report["status"]["mode"] == "on"
    assert report["backend"] == "fake"
    assert report["config"]["slo_tpot_s"] == 0.1
    assert report["config"]["high"] == {"attention": 8, "experts": 8}
    newest = report["decisions"][0]
    assert newest["reason"] == "slo"
    assert newest["present"] == {"attention": 1, "experts": 1}
    assert newest["seen"]["tpot_samples"] > 0
    assert newest["why"]
    assert report["observations"][-1]["arrivals_s"] == pytest.approx(5.0)
    text = generate_latest(world.registry).decode()
    assert f'janus_autoscaler_decisions_total{{reason="slo"}} {len(report["decisions"])}.0' in text
    assert 'janus_autoscaler_tpot_seconds{of="tail"} 0.' in text


async def test_what_is_kept_is_bounded(world: World) -> None:
    await world.live(5 * 300)
    assert len(world.scaling.decisions) <= 256
    assert len(world.scaling.observations) <= 32


async def test_a_crash_of_the_policy_is_told_and_survived(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = asyncio.Event()

    def broken() -> Decision:
        looked.set()
        raise RuntimeError("a bug")

    monkeypatch.setattr(world.scaling, "look", broken)
    world.scaling._every_s = 0.0
    with capture_logs() as logs:
        running = asyncio.create_task(world.scaling.run(), name="scale")
        async with asyncio.timeout(10):
            await looked.wait()
            looked.clear()
            await looked.wait()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert "scaling_crashed" in [event["event"] for event in logs]
    assert "a bug" in world.scaling.status().problem


def test_steps_are_of_one_instance_growth_first() -> None:
    found = list(steps(Counts(attention=3, experts=1), Counts(attention=2, experts=3)))
    assert [str(counts) for counts in found] == ["3A2E", "3A3E", "2A3E"]
    assert list(steps(Counts(attention=1, experts=1), Counts(attention=1, experts=1))) == []


def _fields(options: ScalingOptions) -> dict[str, Any]:
    return {name: getattr(options, name) for name in options.__dataclass_fields__}


def test_on_needs_something_to_act_through() -> None:
    common = CommonOptions(secret="s" * 16, name="controller-0")
    with pytest.raises(ConfigError, match="--autoscale") as caught:
        ControllerOptions(common=common, model=Path("m"), scaling=OPTIONS)
    assert "--scale-command" in caught.value.remedy
    ControllerOptions(common=common, model=Path("m"), scaling=OPTIONS, control_socket="/run/x")


@pytest.mark.parametrize(
    ("changes", "option"),
    [
        ({"slo_tpot_s": 0.0}, "--slo-tpot"),
        ({"max_attention": 1, "min_attention": 2}, "--max-attention"),
        ({"scale_look_back_s": 1.0}, "--scale-look-back"),
        ({"scale_command": "scale.sh {attention}"}, "--scale-command"),
    ],
)
def test_options_that_contradict_each_other_are_named(changes: dict[str, Any], option: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ScalingOptions(**{**_fields(OPTIONS), **changes})
    assert caught.value.field == option
