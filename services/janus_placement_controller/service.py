"""The placement-controller: feeds events to the membership state machine and carries its actions out."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

import msgspec
import structlog
from prometheus_client import CollectorRegistry

from janus.config.options import ControllerOptions
from janus.core.goals import ModelShape
from janus.core.membership import Membership
from janus.core.membership_events import (
    Action,
    Event,
    ExpectedSet,
    HeartbeatSeen,
    LeaveSeen,
    LinkLost,
    Log,
    MarkFailed,
    PlacementLoadedSeen,
    RefuseDuplicate,
    SendFatal,
    SendLoad,
    SendRegistered,
    SendView,
    Tick,
)
from janus.core.membership_events import Registered as RegisteredEvent
from janus.core.placing import POLICIES
from janus.core.roster import roster
from janus.errors import LinkError
from janus.messages import Message
from janus.messages.control import (
    Fatal,
    Heartbeat,
    Identity,
    Leave,
    LoadPlacement,
    PlacementLoaded,
    Refused,
    Register,
    Registered,
    RoutingSample,
    SetExpected,
    StatusReport,
    StatusRequest,
    Traffic,
)
from janus.model.checkpoint import Checkpoint
from janus.runtime.http import HttpServer, ops_app
from janus.runtime.listening import listen_as
from janus.runtime.service import ServiceContext
from janus.transport.link import InFrame, Link
from janus_placement_controller.activations import read_activations
from janus_placement_controller.gauges import ClusterGauges
from janus_placement_controller.hold_ups import HoldUps
from janus_placement_controller.member_links import MemberLinks
from janus_placement_controller.rebalancing import Rebalancer, ReplicaBytes
from janus_placement_controller.statistics import RoutedModel, Statistics
from janus_placement_controller.trace_http import trace_route

if TYPE_CHECKING:
    from janus_placement_controller.autoscaling import Scaling
    from janus_placement_controller.scaling_setup import ScalingSetup

log = structlog.get_logger()


async def serve(context: ServiceContext, options: ControllerOptions) -> None:
    """Run the controller until ``context.stop``."""
    checkpoint = await asyncio.to_thread(Checkpoint.open, options.model)
    config, fingerprint = checkpoint.config, checkpoint.fingerprint
    replica = ReplicaBytes.of(checkpoint)
    checkpoint.close()
    layers, experts = config.num_moe_layers, config.num_experts
    prior = read_activations(options.activations, layers, experts) if options.activations else None
    registry = CollectorRegistry()
    statistics = Statistics(
        RoutedModel(fingerprint=fingerprint, num_layers=layers, num_experts=experts, top_k=config.top_k),
        registry,
        state_dir=options.state_dir,
        max_age_s=options.activations_max_age_s,
        horizon_s=options.activations_horizon_s,
        prior=prior,
    )
    statistics.restore()
    shape = ModelShape(num_layers=layers, num_experts=experts, activations=prior)
    scaling: ScalingSetup | None = None
    if options.scaling.autoscale != "off":
        # Loaded only here: most controllers start without.
        from janus_placement_controller.scaling_setup import prepare

        scaling = await asyncio.to_thread(prepare, options, statistics.model)
    async with statistics.kept():
        await ControllerService(
            context,
            options,
            shape=shape,
            fingerprint=fingerprint,
            replica=replica,
            registry=registry,
            statistics=statistics,
            scaling=scaling,
        ).run()


class ControllerService:
    """One loop, no step loop: everything here is short."""

    def __init__(
        self,
        context: ServiceContext,
        options: ControllerOptions,
        *,
        shape: ModelShape,
        fingerprint: str,
        replica: ReplicaBytes,
        registry: CollectorRegistry,
        statistics: Statistics,
        scaling: ScalingSetup | None,
    ) -> None:
        self._context = context
        self._options = options
        self._identity = context.identity(fingerprint=fingerprint)
        self._membership = Membership(
            shape=shape,
            expected=roster(
                attention=options.expect_attention, experts=options.expect_experts, gateways=options.expect_gateways
            ),
            heartbeat_s=options.heartbeat_s,
            now=time.monotonic(),
            # Milliseconds of wall clock: grows from one start of a controller to the next.
            first_version=int(time.time() * 1000),
            policy=POLICIES[options.placement],
            fill=options.slots_per_instance,
        )
        if (activity := statistics.activity()) is not None:
            self._membership.use_activity(activity)  # what an earlier controller has kept
        self._rebalancer = Rebalancer(
            self._membership,
            options,
            replica=replica,
            dtype=lambda: self._dtype,
            activity=statistics.activity,
            apply=self.handle,
        )
        self._hold_ups = HoldUps(options.heartbeat_s, now=time.monotonic())
        #: Ends of links that are judged when this process judges again.
        self._forgiven: list[asyncio.TimerHandle] = []
        self._setup = scaling
        self._scaling: Scaling | None = None
        if scaling is not None:
            self._scaling = scaling.scaling(self._membership, apply=self.handle, registry=registry)
        self._links = MemberLinks()
        #: dtype that this cluster serves: that of the first instance that states one.
        self._dtype = ""
        self._registry = registry
        self._statistics = statistics
        self._gauges = ClusterGauges(registry)

    async def run(self) -> None:
        """Listen, tick, and stop on ``context.stop``."""
        context, common = self._context, self._context.common
        ops, ops_port = None, 0
        if common.ops_port >= 0:
            routes = [trace_route(self._statistics, context.secret)]
            if self._scaling is not None:
                from janus_placement_controller.scaling_http import scaling_route

                routes.append(scaling_route(self._scaling))
            app = ops_app(
                context.health,
                self._registry,
                status=self._status,
                refresh=self._refresh,
                more=routes,
            )
            ops = HttpServer(app, host=common.host, port=common.ops_port, field="--ops-port")
            ops_port = ops.port
            await ops.start()
        listener = await listen_as(
            common,
            self._identity,
            admit=self._admit,
            handler_factory=lambda identity: _MemberHandler(self, identity),
        )
        try:
            context.announce(port=listener.port, ops_port=ops_port)
            context.health.set("ready")
            await self._serve_until_stopped()
        finally:
            for timer in self._forgiven:
                timer.cancel()
            await listener.close()
            if ops is not None:
                await ops.close()

    async def _serve_until_stopped(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            beside = [tasks.create_task(self._rebalancer.run(), name="rebalance")]
            if self._scaling is not None and self._setup is not None:
                beside.append(tasks.create_task(self._scaling.run(), name="scale"))
                beside.append(
                    tasks.create_task(self._setup.follow_routing(self._statistics.activity), name="follow-routing")
                )
            await self._judge_silence()
            for task in beside:
                task.cancel()

    async def _judge_silence(self) -> None:
        """Tick until the end, but not right after this process was held up itself."""
        heartbeat_s, stop = self._options.heartbeat_s, self._context.stop
        self._hold_ups.tick(time.monotonic())
        while not stop.is_set():
            now = time.monotonic()
            self._note_hold_up(now)
            self._hold_ups.tick(now)
            if self._hold_ups.may_judge(now):
                self.handle(Tick(now=now))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(heartbeat_s / 2):
                    await stop.wait()

    def _note_hold_up(self, now: float) -> None:
        held_up = self._hold_ups.look(now)
        if held_up:
            log.warning("held_up", seconds=round(held_up, 1))

    def _admit(self, identity: Identity) -> Refused | None:
        if identity.dtype and self._dtype and identity.dtype != self._dtype:
            return Refused(
                code="wrong_dtype",
                problem=f"{identity.instance} serves {identity.dtype}, this cluster {self._dtype}; "
                f"start it with --dtype {self._dtype}",
            )
        return None

    # -- events in -----------------------------------------------------------------------------------------------

    def handle(self, event: Event) -> None:
        """Feed one event in and do what comes out."""
        for action in self._membership.handle(event):
            try:
                self._do(action)
            except LinkError as error:
                log.warning("message_dropped", action=type(action).__name__, problem=str(error))
        degraded = self._membership.degraded
        if self._context.health.set("ready", "; ".join(degraded)):
            log.info("health_changed", **self._context.health.report())

    def on_message(self, link: Link, request_id: int, message: Message) -> None:
        """One message of an instance or a tool."""
        now, name, incarnation = time.monotonic(), link.peer.instance, link.peer.incarnation
        match message:
            case Register():
                self._register(link, request_id, message, now)
            case Heartbeat():
                self.handle(HeartbeatSeen(instance=name, heartbeat=message, now=now, incarnation=incarnation))
                if self._scaling is not None and link.peer.role in ("attention", "expert"):
                    self._scaling.on_heartbeat(name, incarnation, message)
            case PlacementLoaded():
                self.handle(PlacementLoadedSeen(instance=name, message=message, now=now, incarnation=incarnation))
            case Leave():
                self.handle(LeaveSeen(instance=name, reason=message.reason, now=now, incarnation=incarnation))
            case RoutingSample():
                self._statistics.on_sample(name, message)
            case Traffic():
                if self._scaling is not None:
                    self._scaling.on_traffic(name, incarnation, message)
            case SetExpected():
                size = ExpectedSet(
                    gateways=message.gateways, attention=message.attention, experts=message.experts, now=now
                )
                self.handle(size)
                link.reply(request_id, self._membership.view)
            case StatusRequest():
                link.reply(request_id, self._report())
            case _:
                log.warning("unexpected_message", peer=name, message=type(message).__name__)

    def on_closed(self, link: Link, error: LinkError) -> None:
        """A link ended; it matters if it is the one that its instance registered over last."""
        if not self._links.lost(link):
            return
        name, now, incarnation = link.peer.instance, time.monotonic(), link.peer.incarnation
        log.info("link_lost", peer=name, problem=str(error))
        self._note_hold_up(now)
        if self._hold_ups.may_judge(now):
            self._lost(name, incarnation)
        else:
            # All of them have closed their links to a controller that did not answer; most are about to return.
            loop = asyncio.get_running_loop()
            self._forgiven = [timer for timer in self._forgiven if timer.when() > loop.time()]
            late_s = self._hold_ups.judge_from - now
            self._forgiven.append(loop.call_later(late_s, self._lost, name, incarnation))

    def _lost(self, name: str, incarnation: str) -> None:
        if name not in self._links:
            self.handle(LinkLost(instance=name, now=time.monotonic(), incarnation=incarnation))

    def _register(self, link: Link, request_id: int, register: Register, now: float) -> None:
        actions = self._membership.handle(RegisteredEvent(identity=link.peer, register=register, now=now))
        refusals = [
            action
            for action in actions
            if isinstance(action, RefuseDuplicate | SendFatal) and action.incarnation == link.peer.incarnation
        ]
        if refusals:
            # The name's rightful owner, if there is one, keeps its link: the refusal goes over this one.
            link.reply(request_id, Fatal(problem=refusals[0].problem))
        else:
            self._links.register(link)
            self._dtype = self._dtype or link.peer.dtype
        for action in actions:
            if action in refusals:
                continue
            if not isinstance(action, SendRegistered):
                self._do(action)
            elif not refusals:
                link.reply(request_id, Registered(heartbeat_s=action.heartbeat_s))

    # -- actions out ---------------------------------------------------------------------------------------------

    def _do(self, action: Action) -> None:
        match action:
            case SendView():
                self._links.send_all(action.view)
            case SendLoad():
                self._links.send(action.instance, LoadPlacement(table=action.table))
            case SendFatal() | RefuseDuplicate():
                self._links.send(action.instance, Fatal(problem=action.problem), incarnation=action.incarnation)
            case MarkFailed():
                self._links.end(action.instance, action.why)
            case Log():
                getattr(log, action.level)(action.event, **action.fields)
            case SendRegistered():
                pass  # answers a registration; sent there

    # -- operations ----------------------------------------------------------------------------------------------

    def _report(self) -> StatusReport:
        report = self._membership.report(time.monotonic())
        if self._scaling is None:
            return report
        return msgspec.structs.replace(report, scaling=self._scaling.status())

    def _status(self) -> dict[str, object]:
        report: dict[str, object] = msgspec.to_builtins(self._report())
        report["waiting_for"] = self._membership.waiting_for
        report["statistics"] = self._statistics.status()
        return report

    def _refresh(self) -> None:
        report = self._membership.report(time.monotonic())
        self._statistics.refresh()
        self._gauges.refresh(report)
        if self._scaling is not None:
            self._scaling.refresh(report)


class _MemberHandler:
    """Handler of one link; all state is the service's."""

    def __init__(self, service: ControllerService, identity: Identity) -> None:
        self._service = service

    def on_message(self, link: Link, request_id: int, message: Message) -> None:
        self._service.on_message(link, request_id, message)

    def on_frame(self, link: Link, frame: InFrame) -> None:
        frame.release()

    def on_closed(self, link: Link, error: LinkError) -> None:
        self._service.on_closed(link, error)
