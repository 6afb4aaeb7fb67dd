"""The expert-server's control loop: controller, health, metrics; the step loop computes beside it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import psutil
import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from janus.config.options import ExpertOptions
from janus.messages.control import ClusterView, Heartbeat, LoadPlacement, Register
from janus.model.checkpoint import Checkpoint
from janus.runtime.cluster_client import ClusterClient
from janus.runtime.http import HttpServer, ops_app
from janus.runtime.service import ServiceContext
from janus.runtime.step_loop import StepLoop
from janus_expert_server.stepping import Stepping

log = structlog.get_logger()

#: A replica is megabytes; a whole share of a large model from a slow disk may take minutes.
_LOAD_TIMEOUT_S = 1800.0
_LISTEN_TIMEOUT_S = 60.0


async def serve(context: ServiceContext, options: ExpertOptions) -> None:
    """Run one expert-server until ``context.stop``."""
    checkpoint = await asyncio.to_thread(Checkpoint.open, options.model)
    service = ExpertService(context, options, checkpoint)
    try:
        await service.run()
    finally:
        checkpoint.close()


class ExpertService(Collector):
    """Owns the process's parts. Also collects the engine's counters for /metrics."""

    def __init__(self, context: ServiceContext, options: ExpertOptions, checkpoint: Checkpoint) -> None:
        self._context = context
        self._options = options
        identity = context.identity(fingerprint=checkpoint.fingerprint, dtype=options.dtype)
        self._step_loop = StepLoop("step-loop")
        self._stepping = Stepping(
            options=options,
            checkpoint=checkpoint,
            identity=identity,
            on_listening=lambda port: self._step_loop.to_control(self._listening.set_result, port),
        )
        self._listening: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._port = 0
        self._ops_port = 0
        self._loads: set[asyncio.Task[None]] = set()
        self._process = psutil.Process()
        self._client = ClusterClient(common=context.common, identity=identity, secret=context.secret, events=self)

    async def run(self) -> None:
        """Start everything, wait for the end, stop everything."""
        context, common = self._context, self._context.common
        registry = CollectorRegistry()
        registry.register(self)
        ops = None
        if common.ops_port >= 0:
            app = ops_app(context.health, registry, status=self._status)
            ops = HttpServer(app, host=common.host, port=common.ops_port, field="--ops-port")
            self._ops_port = ops.port
            await ops.start()
        self._step_loop.start(self._stepping.run)
        finished = self._step_loop.finished
        assert finished is not None
        try:
            await _first(self._listening, finished, timeout_s=_LISTEN_TIMEOUT_S)
            self._port = self._listening.result()
            context.announce(port=self._port, ops_port=self._ops_port)
            context.health.set("joining", "waiting for a placement")
            self._client.start()
            stop = asyncio.create_task(context.stop.wait(), name="wait-for-stop")
            await _first(stop, finished)
            await self._drain()
        finally:
            for load in self._loads:
                load.cancel()
            await self._client.close("shutting down")
            self._step_loop.cancel()
            await asyncio.wait({finished}, timeout=5.0)
            if ops is not None:
                await ops.close()

    async def _drain(self) -> None:
        """Say goodbye first, so that nobody plans with us any more, then answer what is here."""
        self._context.health.set("draining", "shutting down")
        self._client.leave("shutting down")
        timeout = self._options.common.drain_timeout_s
        if not await self._step_loop.run(self._stepping.drain(timeout), timeout_s=timeout + 1.0):
            log.warning("drain_incomplete", limit_s=timeout)

    # -- ClusterEvents -------------------------------------------------------------------------------------------

    def register(self) -> Register:
        engine = self._stepping.engine
        return Register(
            host=self._options.common.host,
            port=self._port,
            pid=self._process.pid,
            slots=self._options.slots,
            loaded_epoch=engine.loaded_epoch if engine is not None else 0,
            ops_port=self._ops_port,
        )

    def heartbeat(self) -> Heartbeat:
        health, report = self._context.health, self._report()
        return Heartbeat(
            state=health.state,
            reason=health.reason,
            waiting=report.get("waiting", 0),
            loaded_epoch=report.get("loaded_epoch", 0),
            steps=report.get("dispatches", 0),
            tokens=report.get("rows", 0),
            rss_bytes=self._process.memory_info().rss,
        )

    def on_view(self, view: ClusterView) -> None:
        """Attention instances dial us; there is nothing to do."""

    def on_load_placement(self, message: LoadPlacement) -> None:
        load = asyncio.create_task(self._load(message), name=f"load[epoch {message.table.epoch}]")
        self._loads.add(load)
        load.add_done_callback(self._loads.discard)

    async def _load(self, message: LoadPlacement) -> None:
        result = await self._step_loop.run(self._stepping.load(message), timeout_s=_LOAD_TIMEOUT_S)
        if result.error:
            self._context.health.set("joining", f"epoch {result.epoch}: {result.error}")
        else:
            self._context.health.set("ready")
        log.info("health_changed", **self._context.health.report())
        self._client.placement_loaded(result)
        self._client.report_now()

    def on_fatal(self, problem: str) -> None:
        log.error("refused_by_cluster", problem=problem)
        self._context.health.set("failed", problem)
        self._context.stop.set()

    # -- operations ----------------------------------------------------------------------------------------------

    def _report(self) -> dict[str, int]:
        engine = self._stepping.engine
        return engine.report() if engine is not None else {}

    def _status(self) -> dict[str, object]:
        return {**self._context.health.report(), "times": self._report()}

    def collect(self) -> Iterable[Metric]:
        """The engine's counters, in Prometheus's form."""
        report = self._report()
        for gauge in ("waiting", "loaded_epoch"):
            yield GaugeMetricFamily(f"janus_expert_{gauge}", _HELP[gauge], value=report.pop(gauge, 0))
        for name, value in report.items():
            if name.endswith("_ns"):
                yield CounterMetricFamily(f"janus_expert_{name[:-3]}_seconds", _HELP[name], value=value / 1e9)
            else:
                yield CounterMetricFamily(f"janus_expert_{name}", _HELP[name], value=value)


_HELP = {
    "waiting": "Dispatches in the queue",
    "loaded_epoch": "Placement epoch whose replicas are loaded",
    "dispatches": "Dispatches computed",
    "rows": "Activation rows computed",
    "groups": "Grouped computations; dispatches / groups = dispatches served by one read of the weights",
    "activated": "Activated experts, summed over grouped computations",
    "queued_ns": "Time that dispatches waited",
    "compute_ns": "Time computing experts",
    "reply_ns": "Time packing and posting answers",
    "rejected": "Dispatches rejected",
}


async def _first(
    wanted: asyncio.Future[Any], finished: asyncio.Future[None], *, timeout_s: float | None = None
) -> None:
    """Wait for ``wanted``; raise what the step loop raised when that ended first, TimeoutError when neither came."""
    done, _ = await asyncio.wait({wanted, finished}, return_when=asyncio.FIRST_COMPLETED, timeout=timeout_s)
    if wanted in done:
        return
    wanted.cancel()
    if finished in done:
        finished.result()
        raise RuntimeError("the step loop ended without being asked to")
    raise TimeoutError(f"the step loop did not start within {timeout_s} s")
