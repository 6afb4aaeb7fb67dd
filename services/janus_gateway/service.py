"""The gateway's process: HTTP in front, links to the attention instances behind, one control loop for both."""

from __future__ import annotations

import asyncio

import psutil
import structlog

from janus.config.options import GatewayOptions
from janus.core.admission import Admission, AdmissionConfig
from janus.errors import Unavailable
from janus.messages.control import ClusterView, Heartbeat, LoadPlacement, Register
from janus.runtime import garbage
from janus.runtime.cluster_client import ClusterClient
from janus.runtime.http import HttpServer, ops_app
from janus.runtime.peers import PeerSet
from janus.runtime.service import ServiceContext
from janus.runtime.sockets import handed_down
from janus.runtime.tasks import OwnedTasks
from janus.transport.contract import LinkOptions
from janus_gateway.app import AppConfig, Gateway, create_app
from janus_gateway.attention_pool import AttentionPool
from janus_gateway.metrics import GatewayMetrics
from janus_gateway.model import ServedModel

log = structlog.get_logger()

#: How long clients have to read the error that ends their stream when the drain limit is over.
_LAST_WORDS_S = 0.5
#: A socket that was handed down has connections waiting, or others to accept them: this one takes none before it can
#: serve. After this long it does in any case, to answer 503 with the reason.
_ACCEPT_AFTER_S = 3.0
#: How long a gateway that no longer accepts waits for requests on the connections that it has accepted already.
_LAME_DUCK_S = 1.0
_REPORT_TRAFFIC_S = 1.0


async def serve(context: ServiceContext, options: GatewayOptions) -> None:
    """Run one gateway until ``context.stop``."""
    model = await asyncio.to_thread(ServedModel.load, options.model, name=options.served_model_name)
    await GatewayService(context, options, model).run()


class GatewayService:
    """Owns the process's parts, and follows the cluster's views."""

    def __init__(self, context: ServiceContext, options: GatewayOptions, model: ServedModel) -> None:
        self._context = context
        self._options = options
        self._process = psutil.Process()
        self._metrics = metrics = GatewayMetrics(model.name)
        limits = AdmissionConfig(max_requests=options.max_queue, max_tokens=options.max_outstanding_tokens)
        self._admission = Admission(limits)
        # No fingerprint: it covers the weights, and a gateway's host may have config and tokenizer alone.
        identity = context.identity()
        # The pool is the links' handler, and the set of links is the pool's; so one of them comes first, empty.
        self._pool = AttentionPool(
            admission=self._admission, metrics=metrics, recovery_timeout_s=options.recovery_timeout_s
        )
        self._peers = PeerSet(
            role="attention",
            identity=identity,
            secret=context.secret,
            transport=context.common.transport,
            handler=self._pool,
            on_up=lambda link: self._pool.retry_orphans(),
            on_change=self._update_health,
            options=LinkOptions(silence_s=options.attention_silence_s),
        )
        self._pool.use_links(self._peers.links)
        self._client = ClusterClient(common=context.common, identity=identity, secret=context.secret, events=self)
        self._gateway = Gateway(
            model=model,
            backend=self._pool,
            health=context.health,
            metrics=metrics,
            config=AppConfig(
                api_key=options.api_key,
                max_body_bytes=options.max_body_bytes,
                request_timeout_s=options.request_timeout_s,
                default_max_tokens=options.default_max_tokens,
                max_sequences=options.max_queue,
            ),
        )
        self._http_port = self._ops_port = 0
        self._ready = asyncio.Event()
        self._tasks = OwnedTasks()

    async def run(self) -> None:
        """Start everything, wait for the end, stop everything."""
        context, common, options = self._context, self._context.common, self._options
        app = create_app(self._gateway)
        listener = handed_down(options.http_fd)
        public = HttpServer(app, host=options.http_host, port=options.http_port, field="--http-port", listener=listener)
        servers = [public]
        if common.ops_port >= 0:
            # The same answers as on the public port, for those who keep that one behind a proxy.
            ops = ops_app(context.health, self._metrics.registry, refresh=self._metrics.refresh)
            servers.append(HttpServer(ops, host=common.host, port=common.ops_port, field="--ops-port"))
        self._http_port, self._ops_port = servers[0].port, servers[-1].port
        try:
            for server in servers:
                if server is not public or listener is None:
                    await server.start()
            context.announce(port=self._http_port, ops_port=self._ops_port, http_port=self._http_port)
            garbage.settle()
            self._update_health()
            self._client.start()
            self._tasks.start(self._report_traffic(), name="report-traffic")
            if listener is not None:
                await self._first(self._ready, context.stop, timeout_s=_ACCEPT_AFTER_S)
                if not context.stop.is_set():
                    await public.start()
            await context.stop.wait()
            await self._drain(shared=None if listener is None else public)
        finally:
            await self._tasks.close()
            await asyncio.gather(*(server.close() for server in servers))
            await self._peers.close("shutting down")
            await self._pool.close()
            await self._client.close("shutting down")

    async def _report_traffic(self) -> None:
        """Tell the controller what clients ask for and see, until cancelled; it scales by that."""
        while True:
            self._client.post(self._metrics.traffic.report())
            await asyncio.sleep(_REPORT_TRAFFIC_S)

    @staticmethod
    async def _first(*events: asyncio.Event, timeout_s: float) -> None:
        """Return when one of ``events`` is set, or after ``timeout_s``."""
        waits = [asyncio.create_task(event.wait(), name="wait-for-event") for event in events]
        try:
            await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    async def _drain(self, *, shared: HttpServer | None) -> None:
        """Take nothing new (``/health`` says so), and give what is in flight its time.

        Where the socket is ``shared``, new connections are others' to accept, and whoever is connected here already is
        served, once more: nobody notices. Where it is not, refusing by name beats closing the door.
        """
        self._context.health.set("draining", "shutting down")
        if shared is None:
            self._admission.drain()
        else:
            self._gateway.last_requests = True
            shared.stop_accepting()
        self._client.leave("shutting down")
        limit_s = self._options.common.drain_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                if shared is not None:
                    await asyncio.sleep(_LAME_DUCK_S)
                    await self._gateway.quiet.wait()
                await self._pool.wait_idle()
        except TimeoutError:
            log.warning("drain_cut_short", sequences=self._pool.in_flight, limit_s=limit_s)
            self._pool.abort(Unavailable("The gateway is shutting down", code="draining", retry_after_s=1.0))
            await asyncio.sleep(_LAST_WORDS_S)

    def _update_health(self) -> None:
        problems = self._pool.problems()
        if not problems:
            self._ready.set()
        if self._context.health.set("joining" if problems else "ready", "; ".join(problems)):
            log.info("health_changed", **self._context.health.report())
            self._client.report_now()

    # -- ClusterEvents -------------------------------------------------------------------------------------------

    def register(self) -> Register:
        """A gateway is dialled by nobody over UCX: its port is that of HTTP."""
        return Register(
            host=self._options.http_host, port=self._http_port, pid=self._process.pid, ops_port=self._ops_port
        )

    def heartbeat(self) -> Heartbeat:
        """State and load as ``janus status`` shows them."""
        health, stats = self._context.health, self._pool.stats()
        return Heartbeat(
            state=health.state,
            reason=health.reason,
            unreachable=self._peers.unreachable(),
            running=stats.running,
            waiting=stats.waiting,
            tokens=stats.tokens,
            rss_bytes=self._process.memory_info().rss,
        )

    def on_view(self, view: ClusterView) -> None:
        """Dial newcomers, drop the dead, and give waiting sequences to whoever is there now."""
        self._peers.update(view.members)
        self._pool.on_view(view)
        self._update_health()

    def on_load_placement(self, message: LoadPlacement) -> None:
        """Gateways hold no experts."""
        log.warning("unexpected_message", message="load_placement")

    def on_fatal(self, problem: str) -> None:
        """The controller will not have this gateway."""
        log.error("refused_by_cluster", problem=problem)
        self._context.health.set("failed", problem)
        self._context.stop.set()
