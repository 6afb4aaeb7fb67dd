"""HTTP servers that live inside a service's control loop: the operations endpoint, and the base of the gateway's."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from janus.runtime.health import Health
from janus.runtime.sockets import BACKLOG, open_tcp
from janus.runtime.tasks import OwnedTasks

#: What open connections are given to end, and what the server may take in all.
_GRACE_S, _CLOSE_LIMIT_S = 2, 5.0


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: the service owns the signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class HttpServer:
    """One ASGI application on one listening socket, started and stopped by its owner."""

    def __init__(
        self, app: Any, *, host: str = "", port: int = 0, field: str = "", listener: socket.socket | None = None
    ) -> None:
        """Serve at ``host``:``port``, or on ``listener``, which then belongs to this server.

        ``field`` is the option that a user would change when the port is taken.

        Raises:
            ConfigError: the port cannot be bound.
        """
        self._socket = open_tcp(host, port, field) if listener is None else listener
        #: 0 for a Unix socket.
        self.port: int = 0 if self._socket.family == socket.AF_UNIX else self._socket.getsockname()[1]
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            server_header=False,
            timeout_graceful_shutdown=_GRACE_S,
            backlog=BACKLOG,
        )
        self._server = _Server(config)
        self._tasks = OwnedTasks()
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Serve from now on: who connects as soon as this returns is answered, if only in a moment."""
        self._socket.listen(BACKLOG)
        self._serving = self._tasks.start(self._server.serve(sockets=[self._socket]), name=f"http[{self.port}]")

    def stop_accepting(self) -> None:
        """Take no new connections; those that are there are served on. Other processes may accept from the socket.

        The socket is closed here and not shut down, so a process that shares it is not disturbed.
        """
        for server in getattr(self._server, "servers", ()):  # there once it has started
            server.close()
        self._socket.close()

    async def close(self) -> None:
        """Stop taking connections, give open ones a moment, then close them."""
        self._server.should_exit = True
        if self._serving is not None:
            await asyncio.wait({self._serving}, timeout=_CLOSE_LIMIT_S)
            await self._tasks.close()
        self._socket.close()


def ops_app(
    health: Health,
    registry: CollectorRegistry,
    *,
    status: Callable[[], dict[str, Any]] | None = None,
    refresh: Callable[[], None] | None = None,
    more: Sequence[BaseRoute] = (),
) -> Starlette:
    """``/live``, ``/ready``, ``/health``, ``/metrics``, ``/status`` for tools, and a service's own routes.

    ``refresh`` is called before metrics are written, to copy gauges in that are cheaper to read than to keep.
    """

    async def live(_: Request) -> Response:
        return JSONResponse({"status": "live"})

    async def report(_: Request) -> Response:
        return JSONResponse(health.report(), status_code=200 if health.serving else 503)

    async def metrics(_: Request) -> Response:
        if refresh is not None:
            refresh()
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    async def show(_: Request) -> Response:
        return JSONResponse(status() if status is not None else health.report())

    return Starlette(
        routes=[
            Route("/live", live),
            Route("/ready", report),
            Route("/health", report),
            Route("/metrics", metrics),
            Route("/status", show),
            *more,
        ]
    )
