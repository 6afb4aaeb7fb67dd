"""What attention- and expert-servers share: a control loop for controller and operations, a step loop for the model.

Everything about tokens, links to other instances included, lives on the step loop. The control loop does little, and
seldom: two busy threads would hand the interpreter lock to and fro, at 30 us and more each time, on the token path.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Coroutine
from typing import Any, Protocol

import psutil
import structlog
from prometheus_client import CollectorRegistry

from janus.config.options import CommonOptions
from janus.messages.control import ClusterView, Heartbeat, Identity, LoadPlacement, Register
from janus.runtime.cluster_client import ClusterClient
from janus.runtime.http import HttpServer, ops_app
from janus.runtime.service import ServiceContext
from janus.runtime.step_loop import StepLoop

log = structlog.get_logger()

#: Loading the libraries of a step loop on a busy machine takes seconds.
_LISTEN_TIMEOUT_S = 60.0
#: What the step loop may take to end once it is asked to.
_END_LIMIT_S = 5.0


class Stepping(Protocol):
    """The half that lives on the step loop; both are run there."""

    def run(self) -> Coroutine[Any, Any, None]:
        """Listen, tell ``ModelServer.listening`` the port, and serve until cancelled."""

    def drain(self, timeout_s: float) -> Coroutine[Any, Any, None]:
        """Take nothing new and finish what is there, within ``timeout_s``."""


class ModelServer(ABC):
    """One server process from start to end. Subclasses say what is registered, reported and measured."""

    def __init__(self, context: ServiceContext, common: CommonOptions, identity: Identity) -> None:
        self.context = context
        self.common = common
        self.step_loop = StepLoop("step-loop")
        self.client = ClusterClient(common=common, identity=identity, secret=context.secret, events=self)
        self.registry = CollectorRegistry()
        self.process = psutil.Process()
        self.port = 0
        self.ops_port = 0
        self._listening: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    # -- what a subclass provides --------------------------------------------------------------------------------

    @property
    @abstractmethod
    def stepping(self) -> Stepping:
        """The half on the step loop."""

    @abstractmethod
    def register(self) -> Register:
        """What to register with; see ``ClusterEvents``."""

    @abstractmethod
    def heartbeat(self) -> Heartbeat:
        """What to report; see ``ClusterEvents``."""

    @abstractmethod
    def on_view(self, view: ClusterView) -> None:
        """A newer view is in force."""

    @abstractmethod
    def on_load_placement(self, message: LoadPlacement) -> None:
        """Expert instances: load these slots."""

    @abstractmethod
    def status(self) -> dict[str, Any]:
        """What ``/status`` shows."""

    @abstractmethod
    def refresh(self) -> None:
        """Bring gauges up to date, before /metrics is written."""

    # -- from start to end ---------------------------------------------------------------------------------------

    def listening(self, port: int) -> None:
        """From the step loop: it listens on ``port``."""
        self.step_loop.to_control(self._listens, port)

    def _listens(self, port: int) -> None:
        if not self._listening.done():  # given up meanwhile
            self._listening.set_result(port)

    async def serve(self, joining: str) -> None:
        """Start everything, wait for ``context.stop``, drain, stop everything. ``joining``: why it is not ready yet."""
        context = self.context
        ops = await self._start_ops()
        self.step_loop.start(self.stepping.run)
        finished = self.step_loop.finished
        assert finished is not None
        try:
            await first(self._listening, finished, timeout_s=_LISTEN_TIMEOUT_S)
            self.port = self._listening.result()
            context.announce(port=self.port, ops_port=self.ops_port)
            context.health.set("joining", joining)
            self.client.start()
            stop = asyncio.create_task(context.stop.wait(), name="wait-for-stop")
            try:
                await first(stop, finished)
            finally:
                stop.cancel()
                await asyncio.gather(stop, return_exceptions=True)
            await self._drain()
        finally:
            await self.client.close("shutting down")
            self.step_loop.cancel()
            await asyncio.wait({finished}, timeout=_END_LIMIT_S)
            if not finished.done():
                log.error("step_loop_does_not_end", limit_s=_END_LIMIT_S)
            elif (error := finished.exception()) is not None:
                log.error("step_loop_failed", problem=f"{type(error).__name__}: {error}")
            if ops is not None:
                await ops.close()

    async def _start_ops(self) -> HttpServer | None:
        if self.common.ops_port < 0:
            return None
        app = ops_app(self.context.health, self.registry, status=self.status, refresh=self.refresh)
        ops = HttpServer(app, host=self.common.host, port=self.common.ops_port, field="--ops-port")
        self.ops_port = ops.port
        await ops.start()
        return ops

    async def _drain(self) -> None:
        """Say goodbye first, so that nobody plans with us any more, then finish what is here."""
        self.context.health.set("draining", "shutting down")
        self.client.leave("shutting down")
        limit_s = self.common.drain_timeout_s
        deadline = asyncio.get_running_loop().time() + limit_s
        try:
            async with asyncio.timeout_at(deadline):
                await self.released()
        except TimeoutError:
            log.warning("still_planned_with", limit_s=limit_s, effect="what comes from now on is refused")
        left_s = max(0.0, deadline - asyncio.get_running_loop().time())
        try:
            await self.step_loop.run(self.stepping.drain(left_s), timeout_s=left_s + 1.0)
        except TimeoutError:
            log.warning("drain_incomplete", limit_s=limit_s)

    async def released(self) -> None:
        """Return once nobody counts on this instance any more; it has said that it leaves. Cancelled when late."""
        return  # unless a subclass knows better

    def on_fatal(self, problem: str) -> None:
        """This instance cannot be part of the cluster: end, and say why."""
        log.error("refused_by_cluster", problem=problem)
        self.context.health.set("failed", problem)
        self.context.stop.set()


async def first(wanted: asyncio.Future[Any], finished: asyncio.Future[None], *, timeout_s: float | None = None) -> None:
    """Wait for ``wanted``; raise what the step loop raised when that ended first, TimeoutError when neither came."""
    waits: set[asyncio.Future[Any]] = {wanted, finished}
    done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED, timeout=timeout_s)
    if wanted in done:
        return
    wanted.cancel()
    if finished in done:
        finished.result()
        raise RuntimeError("the step loop ended without being asked to")
    raise TimeoutError(f"the step loop did not start within {timeout_s} s")
