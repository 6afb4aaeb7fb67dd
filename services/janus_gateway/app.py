"""The HTTP application: routes, API key, and the way of a request from bytes to a running generation."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import structlog
from fastapi import FastAPI, Request
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import janus
from janus.errors import Overloaded, RequestError, Unavailable
from janus.runtime.body import read_body
from janus.runtime.health import Health
from janus_gateway import errors, openapi
from janus_gateway.backend import Backend
from janus_gateway.choice import Choice
from janus_gateway.metrics import GatewayMetrics
from janus_gateway.model import ServedModel
from janus_gateway.parse import Limits, parse_chat, parse_completion
from janus_gateway.prompts import PromptEncoder
from janus_gateway.reply import GenerationResponse, Job
from janus_gateway.shapes import ChatShape, CompletionShape
from janus_gateway.spec import GenerationSpec

log = structlog.get_logger()

#: Seconds that a client may take to send its body.
_BODY_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AppConfig:
    """The gateway's options that concern HTTP."""

    api_key: str = field(default="", repr=False)
    max_body_bytes: int = 4 << 20
    request_timeout_s: float = 600.0
    #: Output tokens of a chat request that names no limit.
    default_max_tokens: int = 4096
    #: Sequences that one request may start.
    max_sequences: int = 256


@dataclass(frozen=True, slots=True)
class _Endpoint:
    parse: Callable[[bytes, Limits], GenerationSpec]
    shape: type[CompletionShape | ChatShape]
    id_prefix: str


_COMPLETIONS = _Endpoint(parse_completion, CompletionShape, "cmpl-")
_CHAT = _Endpoint(parse_chat, ChatShape, "chatcmpl-")


class Gateway:
    """What the routes call. Keeps nothing of a request: a running one belongs to its response."""

    def __init__(
        self, *, model: ServedModel, backend: Backend, health: Health, metrics: GatewayMetrics, config: AppConfig
    ) -> None:
        self.model = model
        self.backend = backend
        self.health = health
        self.metrics = metrics
        self.config = config
        self._encoder = PromptEncoder(model, default_max_tokens=config.default_max_tokens)
        #: Requests between their first byte and their admission.
        self._arriving = 0
        #: Set while no request is between its first byte and its admission.
        self.quiet = asyncio.Event()
        self.quiet.set()
        #: Draining, with others to accept new connections: each connection that is there may send one more request.
        self.last_requests = False
        self._limits = Limits(
            model_names=(model.name, *model.aliases),
            vocab_size=model.vocab_size,
            max_sequences=config.max_sequences,
            defaults=model.defaults,
        )

    async def generate(self, request: Request, endpoint: _Endpoint) -> Response:
        """Take one generation request in; the response that is returned runs it.

        Raises:
            RequestError: refused, with the status to answer.
        """
        arrived_at = asyncio.get_running_loop().time()
        try:
            # Before the body is read: under overload the cheapest answer is the earliest.
            self._check_admission()
            self._arriving += 1
            self.quiet.clear()
            try:
                body = await read_body(request, max_bytes=self.config.max_body_bytes, timeout_s=_BODY_TIMEOUT_S)
                spec = endpoint.parse(body, self._limits)
                prepared = await self._encoder.prepare(spec, id_prefix=endpoint.id_prefix)
            finally:
                self._arriving -= 1
                if not self._arriving:
                    self.quiet.set()
            generation = self.backend.start(prepared.submits, arrived_at=arrived_at)
        except RequestError as error:
            self.metrics.refused(error.status, error.code)
            log.debug("request_refused", status=error.status, code=error.code, problem=error.message)
            raise
        except ClientDisconnect:
            self.metrics.disconnects.inc()
            return Response(status_code=499)  # nobody reads it
        tokenizer = self.model.tokenizer
        shape = endpoint.shape(
            prepared.request_id,
            self.model.name,
            tokenizer,
            logprobs=spec.params.logprobs,
            null_usage=spec.include_usage and not spec.continuous_usage,
        )
        choices = [Choice(i, spec, tokenizer, echo=echo) for i, echo in enumerate(prepared.echoes)]
        return GenerationResponse(
            Job(
                request_id=prepared.request_id,
                spec=spec,
                generation=generation,
                choices=choices,
                shape=shape,
                prompt_tokens=prepared.prompt_tokens,
                metrics=self.metrics,
                arrived_at=arrived_at,
                deadline=arrived_at + self.config.request_timeout_s,
            )
        )

    def authorize(self, request: Request) -> None:
        """Check the bearer token, where one is asked for.

        Raises:
            Unauthorized: it is missing or wrong.
        """
        if not self.config.api_key:
            return
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        matches = hmac.compare_digest(token.strip().encode(), self.config.api_key.encode())
        if scheme.lower() != "bearer" or not matches:
            raise errors.Unauthorized("The API key is missing or wrong; send Authorization: Bearer KEY")

    def _check_admission(self) -> None:
        if self.health.state == "draining" and not self.last_requests:
            raise Unavailable("This gateway is draining and takes no new requests", code="draining", retry_after_s=1)
        self.backend.check()
        if self._arriving >= self.config.max_sequences:
            # Their bodies are in memory, and admission has not seen them yet.
            raise Overloaded(f"{self._arriving} requests are being read already; retry in 1 s", retry_after_s=1.0)

    def reasons(self) -> list[str]:
        """Why ``/health`` and ``/ready`` say 503; empty when they say 200."""
        if self.health.state == "draining":
            return [f"draining: {self.health.reason}"]
        return self.backend.problems()


def create_app(gateway: Gateway) -> FastAPI:
    """Return the ASGI application."""
    app = FastAPI(
        title="Janus", version=janus.__version__, description="OpenAI-compatible endpoint", redirect_slashes=False
    )
    errors.install(app)
    _add_generation(app, gateway)
    _add_models(app, gateway)
    _add_operations(app, gateway)
    openapi.install(app, model_names=(gateway.model.name, *gateway.model.aliases))
    app.add_middleware(LastRequests, gateway=gateway)
    return app


class LastRequests:
    """Tells clients of a draining gateway to open a new connection for what comes next; another one will accept it."""

    def __init__(self, app: ASGIApp, *, gateway: Gateway) -> None:
        self._app = app
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass through; where the gateway drains, with ``Connection: close``."""

        async def closing(message: Message) -> None:
            if message["type"] == "http.response.start" and self._gateway.last_requests:
                message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        await self._app(scope, receive, closing)


def _add_generation(app: FastAPI, gateway: Gateway) -> None:
    def route(endpoint: _Endpoint) -> Callable[[Request], Awaitable[Response]]:
        async def generate(request: Request) -> Response:
            gateway.authorize(request)
            return await gateway.generate(request, endpoint)

        return generate

    for path, endpoint, body, summary in (
        ("/v1/completions", _COMPLETIONS, "CompletionBody", "Continue a text"),
        ("/v1/chat/completions", _CHAT, "ChatBody", "Answer a conversation"),
    ):
        app.post(path, summary=summary, response_class=Response, openapi_extra=openapi.operation(body))(route(endpoint))


def _add_models(app: FastAPI, gateway: Gateway) -> None:
    @app.get("/v1/models", summary="The served model", responses=openapi.errors(401))
    async def models(request: Request) -> dict[str, Any]:
        gateway.authorize(request)
        return {"object": "list", "data": [gateway.model.card()]}

    @app.get("/v1/models/{name:path}", summary="One model", responses=openapi.errors(401, 404))
    async def model(request: Request, name: str) -> dict[str, Any]:
        gateway.authorize(request)
        if name not in (gateway.model.name, *gateway.model.aliases):
            raise errors.ModelNotFound(name, gateway.model.name)
        return gateway.model.card()


def _add_operations(app: FastAPI, gateway: Gateway) -> None:
    @app.get("/live", summary="The process runs")
    async def live() -> dict[str, str]:
        return {"status": "live"}

    unready: dict[int | str, dict[str, Any]] = {503: {"description": "Not now; the body says why"}}

    @app.get("/health", summary="Whether requests are served, and why not", responses=unready)
    @app.get("/ready", summary="As /health", responses=unready)
    async def health() -> Response:
        reasons = gateway.reasons()
        status = "ok" if not reasons else "draining" if gateway.health.state == "draining" else "unavailable"
        return JSONResponse({"status": status, "reasons": reasons}, 503 if reasons else 200)

    @app.get("/metrics", summary="Prometheus metrics", response_class=Response)
    async def metrics() -> Response:
        gateway.metrics.refresh()
        return Response(generate_latest(gateway.metrics.registry), media_type=CONTENT_TYPE_LATEST)
