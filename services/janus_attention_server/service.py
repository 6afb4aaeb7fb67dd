"""The attention-server: its control loop; the step loop (stepping.py) serves gateways and computes beside it."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Any

import structlog

from janus.config.options import AttentionOptions
from janus.core.batcher import BatcherStats
from janus.messages.control import ClusterView, Heartbeat, LoadPlacement, Register
from janus.model.checkpoint import Checkpoint
from janus.runtime.model_server import ModelServer
from janus.runtime.service import ServiceContext
from janus.runtime.step_news import StepNews
from janus_attention_server.experts_watch import ExpertsState
from janus_attention_server.metrics import AttentionMetrics
from janus_attention_server.stepping import Stepping

log = structlog.get_logger()


async def serve(context: ServiceContext, options: AttentionOptions) -> None:
    """Run one attention-server until ``context.stop``."""
    checkpoint = await asyncio.to_thread(Checkpoint.open, options.model)
    try:
        await AttentionServer(context, options, checkpoint).serve(joining="loading the model")
    finally:
        checkpoint.close()


class AttentionServer(ModelServer):
    """One attention instance."""

    def __init__(self, context: ServiceContext, options: AttentionOptions, checkpoint: Checkpoint) -> None:
        identity = context.identity(fingerprint=checkpoint.fingerprint, dtype=options.dtype)
        super().__init__(context, options.common, identity)
        to_control = self.step_loop.to_control
        self._stepping = Stepping(
            options=options,
            checkpoint=checkpoint,
            identity=identity,
            on_listening=self.listening,
            on_news=lambda news: to_control(self._on_news, news),
            on_experts=lambda state: to_control(self._on_experts, state),
            on_placement=lambda: to_control(self.client.report_now),
            on_routing=lambda sample: to_control(self.client.post, sample),
        )
        self._metrics = AttentionMetrics(self.registry, scheduler=options.scheduler)
        self._max_running = options.max_running
        self._scheduler = "" if options.experts == "local" else options.scheduler
        self._unreachable: list[str] = []
        self._activated: dict[str, list[int]] = {}
        self._steps = 0
        self._tokens = 0

    @property
    def stepping(self) -> Stepping:
        return self._stepping

    # -- from the step loop --------------------------------------------------------------------------------------

    def _on_news(self, several: list[StepNews]) -> None:
        for news in several:
            self._metrics.record(news)
            if news.step_s:
                self._steps += 1
                self._tokens += news.sampled
                self._activated = news.activated

    def _on_experts(self, state: ExpertsState) -> None:
        self._unreachable = state.unreachable
        if self.context.health.set("ready" if state.ready else "joining", state.reason):
            log.info("health_changed", **self.context.health.report())
            self.client.report_now()

    # -- ModelServer ---------------------------------------------------------------------------------------------

    def register(self) -> Register:
        return Register(
            host=self.common.host,
            port=self.port,
            pid=self.process.pid,
            ops_port=self.ops_port,
            placement=self._stepping.placement(),
        )

    def heartbeat(self) -> Heartbeat:
        health, stats = self.context.health, self._stats()
        times, dispatching = self._stepping.exchange_times(), self._stepping.dispatching()
        engine = self._stepping.engine
        return Heartbeat(
            oldest_epoch=dispatching.oldest_epoch,
            suspects=dispatching.suspects,
            in_flight=dispatching.in_flight,
            state=health.state,
            reason=health.reason,
            unreachable=self._unreachable,
            running=stats.running if stats else 0,
            waiting=stats.waiting if stats else 0,
            kv_usage=stats.kv_usage if stats else 0.0,
            steps=self._steps,
            tokens=self._tokens,
            rss_bytes=self.process.memory_info().rss,
            activated=self._activated,
            scheduler=self._scheduler,
            proven_share=times["proven"] / times["judged"] if times.get("judged") else None,
            max_running=self._max_running,
            compute_s=engine.times.compute_ns / 1e9 if engine is not None else 0.0,
            wait_s=engine.times.idle_ns / 1e9 if engine is not None else 0.0,
        )

    def on_view(self, view: ClusterView) -> None:
        self.step_loop.call(self._stepping.on_view, view)

    def on_load_placement(self, message: LoadPlacement) -> None:
        log.warning("unexpected_message", message="load_placement")

    def refresh(self) -> None:
        engine = self._stepping.engine
        if engine is not None:
            self._metrics.gauges(engine.stats())
            self._metrics.turns(engine.times, engine.micro_batches)
        self._metrics.exchange(self._stepping.exchange_times())
        self._metrics.link_costs(self._stepping.link_costs())

    def status(self) -> dict[str, Any]:
        engine = self._stepping.engine
        status: dict[str, Any] = dict(self.context.health.report())
        if engine is not None:
            status["micro_batches"] = engine.micro_batches
            status["step_times"] = engine.times.as_dict()
            status["exchange_times"] = self._stepping.exchange_times()
            status["link_costs"] = {kind: asdict(cost) for kind, cost in self._stepping.link_costs().items()}
        return status

    def _stats(self) -> BatcherStats | None:
        engine = self._stepping.engine
        return engine.stats() if engine is not None else None
