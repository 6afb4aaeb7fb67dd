"""The attention-server's control loop: gateways in, controller, health; the step loop computes beside it."""

from __future__ import annotations

import asyncio
from typing import Any

import psutil
import structlog

from janus.config.options import AttentionOptions
from janus.core.batcher import BatcherStats
from janus.messages.control import (
    ClusterView,
    Heartbeat,
    Identity,
    LoadPlacement,
    Refused,
    Register,
    Submit,
    TokenDelta,
)
from janus.model.checkpoint import Checkpoint
from janus.runtime.attention_engine import StepNews
from janus.runtime.cluster_client import ClusterClient
from janus.runtime.http import HttpServer, ops_app
from janus.runtime.service import ServiceContext
from janus.runtime.step_loop import StepLoop
from janus.transport.endpoint import Listener, listen
from janus_attention_server.metrics import AttentionMetrics
from janus_attention_server.sessions import GatewaySession
from janus_attention_server.stepping import ExpertsState, Stepping

log = structlog.get_logger()


async def serve(context: ServiceContext, options: AttentionOptions) -> None:
    """Run one attention-server until ``context.stop``."""
    checkpoint = await asyncio.to_thread(Checkpoint.open, options.model)
    service = AttentionService(context, options, checkpoint)
    try:
        await service.run()
    finally:
        checkpoint.close()


class AttentionService:
    """Owns the process's parts and moves messages between its two loops."""

    def __init__(self, context: ServiceContext, options: AttentionOptions, checkpoint: Checkpoint) -> None:
        self._context = context
        self._options = options
        self._identity = context.identity(fingerprint=checkpoint.fingerprint, dtype=options.dtype)
        self._step_loop = StepLoop("step-loop")
        self._stepping = Stepping(
            options=options,
            checkpoint=checkpoint,
            identity=self._identity,
            publish=lambda news: self._step_loop.to_control(self._on_news, news),
            on_experts=lambda state: self._step_loop.to_control(self._on_experts, state),
        )
        self._metrics = AttentionMetrics()
        self._sessions: list[GatewaySession] = []
        self._owner: dict[str, GatewaySession] = {}
        self._experts = ExpertsState(ready=False, reason="loading the model", unreachable=[])
        self._stats: BatcherStats | None = None
        self._activated: dict[str, list[int]] = {}
        self._steps = 0
        self._tokens = 0
        self._listener: Listener | None = None
        self._ops_port = 0
        self._process = psutil.Process()
        self._client = ClusterClient(common=context.common, identity=self._identity, secret=context.secret, events=self)

    async def run(self) -> None:
        """Start everything, wait for the end, stop everything."""
        context, common = self._context, self._context.common
        ops = None
        if common.ops_port >= 0:
            ops = HttpServer(self._ops(), host=common.host, port=common.ops_port, field="--ops-port")
        self._listener = await listen(
            common.transport,
            common.host,
            common.port,
            identity=self._identity,
            secret=context.secret,
            admit=self._admit,
            handler_factory=self._open_session,
        )
        try:
            if ops is not None:
                self._ops_port = ops.port
                await ops.start()
            context.announce(port=self._listener.port, ops_port=self._ops_port)
            context.health.set("joining", "loading the model")
            self._step_loop.start(self._stepping.run)
            self._client.start()
            await self._until_stop()
            await self._drain()
        finally:
            await self._client.close("shutting down")
            await asyncio.gather(*(session.close("shutting down") for session in list(self._sessions)))
            await self._listener.close()
            self._step_loop.cancel()
            if ops is not None:
                await ops.close()

    async def _until_stop(self) -> None:
        """Return on a signal; raise when the step loop ended by itself."""
        finished = self._step_loop.finished
        assert finished is not None
        stop = asyncio.create_task(self._context.stop.wait(), name="wait-for-stop")
        try:
            waits: set[asyncio.Future[Any]] = {stop, finished}
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stop.cancel()
        if finished.done():
            finished.result()
            raise RuntimeError("the step loop ended without being asked to")

    async def _drain(self) -> None:
        self._context.health.set("draining", "shutting down")
        self._client.leave("shutting down")
        timeout = self._options.common.drain_timeout_s
        await self._step_loop.run(self._stepping.drain(timeout), timeout_s=timeout + 1.0)
        # Loop callbacks keep their order: the news of the last step has been handed over when this comes back.
        await asyncio.sleep(0)

    # -- gateways ------------------------------------------------------------------------------------------------

    def _admit(self, identity: Identity) -> Refused | None:
        if identity.role not in ("gateway", "tool"):
            return Refused(code="wrong_role", problem=f"attention instances take gateways, not {identity.role}")
        if self._context.stop.is_set():
            return Refused(code="draining", problem="this attention instance is shutting down")
        return None

    def _open_session(self, identity: Identity) -> GatewaySession:
        session = GatewaySession(identity, self, self._sessions.remove)
        self._sessions.append(session)
        return session

    def submit_from(self, session: GatewaySession, message: Submit) -> None:
        """Hand a gateway's request to the step loop."""
        self._owner[message.request_id] = session
        self._step_loop.call(self._submit_there, message)

    def cancel(self, request_id: str) -> None:
        """Hand a cancellation to the step loop."""
        self._owner.pop(request_id, None)
        self._step_loop.call(self._cancel_there, request_id)

    def _submit_there(self, message: Submit) -> None:
        if self._stepping.engine is not None:
            self._stepping.engine.submit(message)
            return
        refusal = TokenDelta(
            request_id=message.request_id,
            index=len(message.emitted_ids),
            token_ids=[],
            finish_reason="error",
            status=503,
            code="starting",
            problem="the attention instance is still loading the model",
            retry_after_s=1.0,
        )
        self._step_loop.to_control(self._send, [refusal])

    def _cancel_there(self, request_id: str) -> None:
        if self._stepping.engine is not None:
            self._stepping.engine.cancel(request_id)

    # -- news from the step loop ---------------------------------------------------------------------------------

    def _on_news(self, news: StepNews) -> None:
        self._stats = news.stats
        if news.step_s:
            self._steps += 1
            self._tokens += news.sampled
            self._activated = news.activated
        self._metrics.record(news)
        self._send(news.deltas)

    def _send(self, deltas: list[TokenDelta]) -> None:
        per_session: dict[int, tuple[GatewaySession, list[TokenDelta]]] = {}
        for delta in deltas:
            ended = delta.finish_reason is not None
            session = self._owner.pop(delta.request_id, None) if ended else self._owner.get(delta.request_id)
            if session is not None:
                per_session.setdefault(id(session), (session, []))[1].append(delta)
        for session, own in per_session.values():
            session.send(own, self._stats.kv_usage if self._stats else 0.0)

    def _on_experts(self, state: ExpertsState) -> None:
        self._experts = state
        changed = self._context.health.set("ready" if state.ready else "joining", state.reason)
        if changed:
            log.info("health_changed", **self._context.health.report())
            self._client.report_now()

    # -- ClusterEvents -------------------------------------------------------------------------------------------

    def register(self) -> Register:
        assert self._listener is not None
        return Register(
            host=self._options.common.host,
            port=self._listener.port,
            pid=self._process.pid,
            ops_port=self._ops_port,
        )

    def heartbeat(self) -> Heartbeat:
        health, stats = self._context.health, self._stats
        return Heartbeat(
            state=health.state,
            reason=health.reason,
            unreachable=self._experts.unreachable,
            running=stats.running if stats else 0,
            waiting=stats.waiting if stats else 0,
            kv_usage=stats.kv_usage if stats else 0.0,
            steps=self._steps,
            tokens=self._tokens,
            rss_bytes=self._process.memory_info().rss,
            activated=self._activated,
        )

    def on_view(self, view: ClusterView) -> None:
        self._step_loop.call(self._stepping.on_view, view)

    def on_load_placement(self, message: LoadPlacement) -> None:
        log.warning("unexpected_message", message="load_placement")

    def on_fatal(self, problem: str) -> None:
        log.error("refused_by_cluster", problem=problem)
        self._context.health.set("failed", problem)
        self._context.stop.set()

    # -- operations ----------------------------------------------------------------------------------------------

    def _ops(self) -> object:
        return ops_app(self._context.health, self._metrics.registry, status=self._status, refresh=self._refresh)

    def _refresh(self) -> None:
        engine = self._stepping.engine
        if engine is not None:
            self._metrics.gauges(engine.stats())

    def _status(self) -> dict[str, object]:
        engine = self._stepping.engine
        status: dict[str, object] = dict(self._context.health.report())
        if engine is not None:
            status["step_times"] = engine.times.as_dict()
            status["exchange_times"] = self._stepping.exchange_times()
        return status
