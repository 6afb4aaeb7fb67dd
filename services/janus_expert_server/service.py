"""The expert-server: its control loop; the step loop (stepping.py) computes beside it."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import structlog

from janus.config.options import ExpertOptions
from janus.messages.control import ClusterView, Heartbeat, LoadPlacement, PlacementLoaded, Register
from janus.model.checkpoint import Checkpoint
from janus.runtime import garbage
from janus.runtime.device import chosen_device, torch_dtype
from janus.runtime.model_server import ModelServer
from janus.runtime.service import ServiceContext
from janus.runtime.tasks import OwnedTasks
from janus_expert_server.capacity import replica_capacity
from janus_expert_server.metrics import EngineCollector
from janus_expert_server.stepping import Stepping

log = structlog.get_logger()

#: A replica is megabytes; a whole share of a large model from a slow disk may take minutes.
_LOAD_TIMEOUT_S = 1800.0


async def serve(context: ServiceContext, options: ExpertOptions) -> None:
    """Run one expert-server until ``context.stop``."""
    checkpoint = await asyncio.to_thread(Checkpoint.open, options.model)
    try:
        await ExpertServer(context, options, checkpoint).serve(joining="waiting for a placement")
    finally:
        checkpoint.close()


class ExpertServer(ModelServer):
    """One expert instance."""

    def __init__(self, context: ServiceContext, options: ExpertOptions, checkpoint: Checkpoint) -> None:
        identity = context.identity(fingerprint=checkpoint.fingerprint, dtype=options.dtype)
        super().__init__(context, options.common, identity)
        self._options = options
        self._stepping = Stepping(
            options=options, checkpoint=checkpoint, identity=identity, on_listening=self.listening
        )
        self._loads = OwnedTasks()
        self._newest_epoch = 0
        self._released = asyncio.Event()
        dtype, device = torch_dtype(options.dtype), chosen_device(options.device)
        self._capacity = replica_capacity(checkpoint.config, dtype, device)
        self.registry.register(EngineCollector(self._report))

    @property
    def stepping(self) -> Stepping:
        return self._stepping

    async def serve(self, joining: str) -> None:
        try:
            await super().serve(joining)
        finally:
            await self._loads.close()

    def register(self) -> Register:
        engine = self._stepping.engine
        return Register(
            host=self.common.host,
            port=self.port,
            pid=self.process.pid,
            slots=self._options.slots,
            capacity=self._capacity,
            speed=self._options.speed,
            loaded_epoch=self._report().get("loaded_epoch", 0),
            loaded_epochs=engine.loaded_epochs if engine is not None else [],
            ops_port=self.ops_port,
        )

    def heartbeat(self) -> Heartbeat:
        health, report = self.context.health, self._report()
        return Heartbeat(
            state=health.state,
            reason=health.reason,
            waiting=report.get("waiting", 0),
            in_flight=report.get("waiting", 0),
            loaded_epoch=report.get("loaded_epoch", 0),
            steps=report.get("dispatches", 0),
            tokens=report.get("rows", 0),
            compute_s=report.get("compute_ns", 0) / 1e9,
            rss_bytes=self.process.memory_info().rss,
        )

    def on_view(self, view: ClusterView) -> None:
        self.step_loop.call(self._stepping.on_view, view)
        if is_released(view, self.common.name):
            self._released.set()
        else:
            self._released.clear()

    async def released(self) -> None:
        """Serve on until no attention instance plans with this one, nobody can take over, or nobody would say so."""
        waits = {
            asyncio.create_task(self._released.wait(), name="wait-for-release"),
            asyncio.create_task(self.client.wait_lost(), name="wait-for-controller-loss"),
        }
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    def on_load_placement(self, message: LoadPlacement) -> None:
        self._newest_epoch = max(self._newest_epoch, message.table.epoch)
        self._loads.start(self._load(message), name=f"load[epoch {message.table.epoch}]")

    async def _load(self, message: LoadPlacement) -> None:
        started = time.monotonic()
        try:
            result = await self.step_loop.run(self._stepping.load(message), timeout_s=_LOAD_TIMEOUT_S)
        except Exception as error:
            # Whatever it was: the controller must hear of it, or the cluster waits for this instance for ever.
            log.exception("placement_failed", epoch=message.table.epoch)
            problem = f"{type(error).__name__}: {error}"
            seconds = time.monotonic() - started
            result = PlacementLoaded(
                epoch=message.table.epoch, replicas=0, bytes_read=0, seconds=seconds, error=problem
            )
        if result.error and result.epoch < self._newest_epoch:
            pass  # it gave way to a newer one, whose outcome counts
        elif result.error:
            # What an earlier epoch says is still served: degraded, not gone.
            serves = self._report().get("loaded_epoch", 0) > 0
            self.context.health.set("ready" if serves else "joining", f"epoch {result.epoch}: {result.error}")
        else:
            garbage.settle()
            self.context.health.set("ready")
        log.info("health_changed", **self.context.health.report())
        self.client.placement_loaded(result)
        self.client.report_now()

    def _report(self) -> dict[str, int]:
        engine = self._stepping.engine
        return engine.report() if engine is not None else {}

    def refresh(self) -> None:
        """Nothing: the collector reads the engine when it is asked."""

    def status(self) -> dict[str, Any]:
        engine = self._stepping.engine
        speeds = {} if engine is None else {name or "checkpoint": round(v) for name, v in engine.load_speeds.items()}
        return {**self.context.health.report(), "times": self._report(), "load_bytes_per_s": speeds}


def is_released(view: ClusterView, instance: str) -> bool:
    """Return whether no dispatch for ``instance`` can come any more, or waiting for that would be in vain."""
    others = any(
        m.role == "expert" and m.instance != instance and m.state in ("joining", "ready") for m in view.members
    )
    dispatchers = any(m.role == "attention" and m.state != "failed" for m in view.members)
    if not others or not dispatchers or view.placement is None:
        return True
    return instance not in view.placement.instances and view.oldest_epoch >= view.placement.epoch
