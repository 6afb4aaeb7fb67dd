"""The control socket of ``janus up``: HTTP on a Unix socket, for ``janus scale``, ``drain`` and ``restart``.

``POST /scale``, ``/drain`` and ``/restart`` answer with one JSON object per line: ``{"line": ...}`` as things happen,
and at the end ``{"done": true}`` or ``{"error": ...}``. What is refused at once is 400 (bad input) or 409 (another
operation runs), with ``{"error": ...}``. ``GET /instances`` lists what runs. The run directory and the socket are the
user's alone, so whoever can connect may do all this.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from janus.cluster.fleet import Fleet
from janus.cluster.jobs import Busy, Job, Jobs
from janus.cluster.operations import Operations
from janus.errors import ConfigError, LaunchError, RequestError
from janus.runtime.body import read_body

_MAX_BODY_BYTES = 64 << 10
_BODY_TIMEOUT_S = 10.0

T = TypeVar("T")


class ScaleRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of ``POST /scale``: numbers, or ``"+1"`` and ``"-1"``; what is not named stays as it is."""

    gateways: int | str | None = None
    attention: int | str | None = None
    experts: int | str | None = None


class DrainRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of ``POST /drain``."""

    instance: str


class RestartRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of ``POST /restart``: some instances, or with ``rolling`` and none named, every one."""

    instances: list[str] = []
    rolling: bool = False
    in_place: bool = False


class ControlApi:
    """The routes. ``group`` owns the operations that they start."""

    def __init__(self, *, operations: Operations, fleet: Fleet, jobs: Jobs, group: asyncio.TaskGroup) -> None:
        self._operations = operations
        self._fleet = fleet
        self._jobs = jobs
        self._group = group

    def app(self) -> Starlette:
        """Return the ASGI application."""
        return Starlette(
            routes=[
                Route("/instances", self._instances),
                Route("/scale", self._scale, methods=["POST"]),
                Route("/drain", self._drain, methods=["POST"]),
                Route("/restart", self._restart, methods=["POST"]),
            ]
        )

    async def _scale(self, request: Request) -> Response:
        def begin(wish: ScaleRequest) -> tuple[str, Coroutine[Any, Any, None]]:
            named = {name: value for name, value in msgspec.structs.asdict(wish).items() if value is not None}
            if not named:
                raise ConfigError("scale", "says nothing to change", "give --experts, --attention or --gateways")
            wanted = self._operations.sizes.changed(named)
            return f"scale {_words(named)}", self._operations.scale(wanted)

        return await self._start(request, ScaleRequest, begin)

    async def _drain(self, request: Request) -> Response:
        return await self._start(
            request, DrainRequest, lambda wish: (f"drain {wish.instance}", self._operations.drain(wish.instance))
        )

    async def _restart(self, request: Request) -> Response:
        def begin(wish: RestartRequest) -> tuple[str, Coroutine[Any, Any, None]]:
            if not wish.instances and not wish.rolling:
                raise ConfigError(
                    "INSTANCE", "none is named", "name instances, or give --rolling for every one in turn"
                )
            work = self._operations.restart(wish.instances, in_place=wish.in_place)
            return f"restart {' '.join(wish.instances) or '--rolling'}", work

        return await self._start(request, RestartRequest, begin)

    async def _instances(self, _: Request) -> Response:
        instances = [
            {
                "name": name,
                "role": self._fleet.role(name),
                "state": state if state == "drained" or self._fleet.started(name) else "down",
                "pid": started.pid if (started := self._fleet.started(name)) else None,
                "restarts": self._fleet.failures(name),
            }
            for state, names in (("running", self._fleet.names()), ("drained", self._fleet.drained()))
            for name in names
        ]
        sizes = self._operations.sizes
        expected = {"gateways": sizes.gateways, "attention": sizes.attention, "experts": sizes.experts}
        return JSONResponse({"instances": instances, "expected": expected, "operation": self._jobs.running})

    async def _start(
        self, request: Request, kind: type[T], begin: Callable[[T], tuple[str, Coroutine[Any, Any, None]]]
    ) -> Response:
        try:
            body = await read_body(request, max_bytes=_MAX_BODY_BYTES, timeout_s=_BODY_TIMEOUT_S)
            wish = msgspec.json.decode(body, type=kind)
            self._jobs.check_free()
            job = self._jobs.start(*begin(wish), self._group)
        except msgspec.DecodeError as error:
            problem = ConfigError("body", f"cannot be read ({error})", f"send the fields of {kind.__name__} as JSON")
            return _refusal(problem, 400)
        except RequestError as error:
            return _refusal(ConfigError("body", error.message, "send one JSON object"), 400)
        except ConfigError as error:
            return _refusal(error, 400)
        except Busy as error:
            return _refusal(error, 409)
        return StreamingResponse(_lines(job), media_type="application/x-ndjson")


async def _lines(job: Job) -> AsyncIterator[bytes]:
    async for line in job.progress():
        yield msgspec.json.encode({"line": line}) + b"\n"
    yield msgspec.json.encode({"done": True} if job.error is None else {"error": _described(job.error)}) + b"\n"


def _refusal(error: Exception, status: int) -> Response:
    return JSONResponse({"error": _described(error)}, status)


def _described(error: Exception) -> dict[str, Any]:
    found: dict[str, Any] = {"message": str(error) or type(error).__name__}
    if isinstance(error, ConfigError):
        found |= {"field": error.field, "problem": error.problem, "remedy": error.remedy}
    if isinstance(error, LaunchError):
        found |= {"instance": error.instance, "problem": error.problem, "log": error.log, "log_tail": error.log_tail}
    return found


def _words(named: dict[str, Any]) -> str:
    return " ".join(f"--{name} {value}" for name, value in named.items())
