"""A gateway on real HTTP, over real links, in front of attention instances that run the real batcher.

Only the model is small: it echoes. Output token ``i`` is prompt token ``(i + seed) % len(prompt)``, and after one full
round it says end-of-sequence. So every test knows the exact text that has to come back.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import httpx

from janus.core.admission import Admission, AdmissionConfig
from janus.core.batcher import Action, Batcher, BatcherConfig, Emit, Reject, SamplingView
from janus.errors import LinkError, RequestError
from janus.messages import PROTOCOL_VERSION, Message
from janus.messages.control import (
    Cancel,
    ClusterView,
    Identity,
    InstanceState,
    Member,
    PlacementTable,
    Role,
    Submit,
    TokenDelta,
    TokenLogprob,
    Tokens,
)
from janus.runtime.health import Health
from janus.runtime.http import HttpServer
from janus.runtime.peers import PeerSet
from janus.runtime.step_news import refusal
from janus.text import Tokenizer
from janus.transport.endpoint import Listener, listen
from janus.transport.link import InFrame, Link
from janus_gateway.app import AppConfig, Gateway, create_app
from janus_gateway.attention_pool import AttentionPool
from janus_gateway.metrics import GatewayMetrics
from janus_gateway.model import ServedModel
from tests.waiting import turns

SECRET = b"a secret for tests"
CONTEXT = 2048
MODEL = "echo"


def identity(role: Role, instance: str) -> Identity:
    return Identity(protocol=PROTOCOL_VERSION, role=role, instance=instance, node="n", incarnation=instance)


class EchoInstance:
    """One attention instance: listener, batcher, and a loop that steps while there is something to do."""

    def __init__(self, name: str, tokenizer: Tokenizer) -> None:
        self.name = name
        self.state: InstanceState = "ready"
        self.eos = min(tokenizer.eos_ids)
        self.submitted: list[Submit] = []
        self.cancelled: list[str] = []
        self.changed = asyncio.Event()
        #: Steps that may be taken; None = any number.
        self.steps_left: int | None = None
        self._wake = asyncio.Event()
        self._links: dict[str, Link] = {}
        self._batcher = Batcher(
            BatcherConfig(
                max_running=64,
                token_budget=512,
                block_size=16,
                num_blocks=1024,
                max_model_len=CONTEXT,
                max_waiting=512,
            )
        )
        self._listener: Listener | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._listener = await listen(
            "inproc",
            "127.0.0.1",
            0,
            identity=identity("attention", self.name),
            secret=SECRET,
            handler_factory=lambda _: self,
        )
        self._task = asyncio.create_task(self._run(), name=f"echo[{self.name}]")

    @property
    def running(self) -> int:
        """Requests that hold memory here."""
        stats = self._batcher.stats()
        return stats.running + stats.waiting

    def member(self) -> Member:
        assert self._listener is not None
        return Member(
            role="attention",
            instance=self.name,
            node="n",
            host="127.0.0.1",
            port=self._listener.port,
            incarnation=self.name,
            state=self.state,
        )

    def allow(self, steps: int | None) -> None:
        """Hold the model after ``steps`` more steps; None lets it run."""
        self.steps_left = steps
        self._wake.set()

    async def until(self, condition: object) -> None:
        """Wait until ``condition()`` holds; it is looked at whenever something happens here."""
        assert callable(condition)
        async with asyncio.timeout(10):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    def drain(self) -> None:
        self._batcher.drain()

    def refuse_all(self, error: RequestError) -> None:
        self._publish(self._batcher.abort(error))

    def crash(self) -> None:
        """Every connection breaks at once, as when the process dies."""
        assert self._task is not None
        self._task.cancel()
        for link in list(self._links.values()):
            link.abort("crashed")

    async def close(self) -> None:
        assert self._listener is not None
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._listener.close()

    # -- LinkHandler -------------------------------------------------------------------------------------------------

    def on_message(self, link: Link, request_id: int, message: Message) -> None:
        if isinstance(message, Submit):
            self.submitted.append(message)
            self._links[message.request_id] = link
            for action in self._batcher.submit(message, eos_token_ids=[self.eos], now=0.0):
                if isinstance(action, Reject):
                    self._send([refusal(message, action.error)])
        elif isinstance(message, Cancel):
            self.cancelled.append(message.request_id)
            self._batcher.cancel(message.request_id)
        self.changed.set()
        self._wake.set()

    def on_frame(self, link: Link, frame: InFrame) -> None:
        raise AssertionError("gateways send no tensors")

    def on_closed(self, link: Link, error: LinkError) -> None:
        for request_id in [name for name, own in self._links.items() if own is link]:
            del self._links[request_id]
            self._batcher.cancel(request_id)
        self.changed.set()

    # -- the engine --------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            plan = None if self.steps_left == 0 else self._batcher.plan(0.0)
            if plan is None:
                self.changed.set()
                self._wake.clear()
                await self._wake.wait()
                continue
            if self.steps_left is not None:
                self.steps_left -= 1
            tokens = [self._next(view) for view in plan.sampling]
            logprobs = [_logprob(view, token) for view, token in zip(plan.sampling, tokens, strict=True)]
            self._publish(self._batcher.step_done(plan, tokens, logprobs))
            self.changed.set()
            await turns()  # what the links bring comes in between steps

    def _next(self, view: SamplingView) -> int:
        length = len(view.prompt_ids)
        if view.position >= length and self.eos not in view.suppressed_ids and self.eos in view.stop_ids:
            return self.eos
        return view.prompt_ids[(view.position + (view.params.seed or 0)) % length]

    def _publish(self, actions: list[Action]) -> None:
        self._send([action.delta for action in actions if isinstance(action, Emit)])

    def _send(self, deltas: list[TokenDelta]) -> None:
        by_link: dict[Link, list[TokenDelta]] = {}
        for delta in deltas:
            link = self._links.get(delta.request_id)
            if link is not None and not link.closed:
                by_link.setdefault(link, []).append(delta)
        for link, own in by_link.items():
            link.post_message(Tokens(deltas=own, kv_usage=self._batcher.stats().kv_usage))


def _logprob(view: SamplingView, token: int) -> TokenLogprob | None:
    count = view.params.logprobs
    if count is None:
        return None
    return TokenLogprob(
        logprob=-0.25, top_ids=[token, *range(count)][:count], top_logprobs=[-0.25, *[-2.0] * count][:count]
    )


@dataclass(kw_only=True)
class EchoCluster:
    """Everything, running."""

    instances: dict[str, EchoInstance]
    pool: AttentionPool
    peers: PeerSet
    gateway: Gateway
    metrics: GatewayMetrics
    health: Health
    client: httpx.AsyncClient
    url: str
    links_changed: asyncio.Event
    _version: int = field(default=0)

    async def publish_view(self, *, linked: bool = True, empty: bool = False) -> None:
        """Tell the gateway who is there (or nobody, as a controller does that has just restarted); wait for links."""
        self._version += 1
        members = [] if empty else [instance.member() for instance in self.instances.values()]
        placement = PlacementTable(epoch=1, num_experts=1, instances=["e"], slots=[[[0]]])
        view = ClusterView(version=self._version, members=members, missing=[], placement=placement)
        self.peers.update(view.members)
        self.pool.on_view(view)
        async with asyncio.timeout(10):
            while linked and len(self.peers.links) < len(members):
                self.links_changed.clear()
                await self.links_changed.wait()

    @property
    def first(self) -> EchoInstance:
        return next(iter(self.instances.values()))

    async def complete(self, prompt: object, path: str = "/v1/completions", **body: object) -> httpx.Response:
        key = "messages" if path.endswith("chat/completions") else "prompt"
        return await self.client.post(path, json={"model": MODEL, key: prompt, **body})

    async def metric(self, name: str) -> float:
        """Sum of a metric's samples, over its labels."""
        text = (await self.client.get("/metrics")).text
        return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.split("{")[0] == name)


@contextlib.asynccontextmanager
async def echo_cluster(
    tokenizer: Tokenizer,
    *,
    attention: int = 1,
    config: AppConfig | None = None,
    limits: AdmissionConfig | None = None,
    recovery_timeout_s: float = 5.0,
) -> AsyncIterator[EchoCluster]:
    """Run a gateway and ``attention`` echo instances."""
    metrics, health = GatewayMetrics(MODEL), Health(state="ready", reason="")
    admission = Admission(limits or AdmissionConfig(max_requests=128, max_tokens=1 << 18))
    pool = AttentionPool(admission=admission, metrics=metrics, recovery_timeout_s=recovery_timeout_s)
    links_changed = asyncio.Event()
    peers = PeerSet(
        role="attention",
        identity=identity("gateway", "g"),
        secret=SECRET,
        transport="inproc",
        handler=pool,
        on_up=lambda link: pool.retry_orphans(),
        on_change=links_changed.set,
    )
    pool.use_links(peers.links)
    model = ServedModel(
        name=MODEL,
        aliases=("/models/echo",),
        tokenizer=tokenizer,
        context_len=CONTEXT,
        vocab_size=tokenizer.vocab_size,
    )
    gateway = Gateway(model=model, backend=pool, health=health, metrics=metrics, config=config or AppConfig())
    server = HttpServer(create_app(gateway), host="127.0.0.1", port=0, field="--http-port")
    url = f"http://127.0.0.1:{server.port}"
    instances = {name: EchoInstance(name, tokenizer) for name in (f"attention-{i}" for i in range(attention))}
    async with httpx.AsyncClient(base_url=url, timeout=20) as client:
        cluster = EchoCluster(
            instances=instances,
            pool=pool,
            peers=peers,
            gateway=gateway,
            metrics=metrics,
            health=health,
            client=client,
            url=url,
            links_changed=links_changed,
        )
        for instance in instances.values():
            await instance.start()
        await server.start()
        try:
            await cluster.publish_view()
            yield cluster
        finally:
            await server.close()
            await peers.close("test over")
            for instance in instances.values():
                await instance.close()
