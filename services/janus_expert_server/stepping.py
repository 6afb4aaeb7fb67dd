"""The expert-server's step loop: the listener for attention instances, and the engine behind it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog
import torch

from janus.config.options import ExpertOptions
from janus.messages.control import ClusterView, Identity, LoadPlacement, PlacementLoaded, Refused
from janus.model.checkpoint import Checkpoint
from janus.model.gate import load_gates
from janus.runtime.device import prepare, torch_dtype
from janus.runtime.expert_engine import ExpertEngine
from janus.runtime.listening import listen_as
from janus.runtime.node_links import NodeLinks
from janus.runtime.replica_links import ReplicaLinks
from janus.transport.endpoint import Listener

log = structlog.get_logger()


class Stepping:
    """Everything that lives on the step loop. ``run`` builds it there; the coroutines are run there too."""

    def __init__(
        self,
        *,
        options: ExpertOptions,
        checkpoint: Checkpoint,
        identity: Identity,
        on_listening: Callable[[int], None],
    ) -> None:
        self._options = options
        self._checkpoint = checkpoint
        self._identity = identity
        self._on_listening = on_listening
        self._listener: Listener | None = None
        self._loading = asyncio.Lock()
        self._draining = False
        self._node = NodeLinks(identity=identity, secret=options.common.secret.encode())
        self._reach: ReplicaLinks | None = None
        self._view: ClusterView | None = None
        self.engine: ExpertEngine | None = None

    async def run(self) -> None:
        """Listen and serve until cancelled."""
        options, common, config = self._options, self._options.common, self._checkpoint.config
        device, dtype = prepare(options.device, options.threads), torch_dtype(options.dtype)
        node = self._node
        gates = None
        if options.gate == "expert":
            gates = await asyncio.to_thread(load_gates, self._checkpoint, config, dtype, device)
        self._reach = ReplicaLinks(
            identity=self._identity,
            secret=common.secret.encode(),
            transport=common.transport,
            siblings=node.links,
            handler=self._handler,
            pool=node.pool,
        )
        engine = self.engine = ExpertEngine(
            checkpoint=self._checkpoint,
            config=config,
            dtype=dtype,
            device=device,
            instance=common.name,
            siblings=node.links,
            gates=gates,
            reach=self._reach,
            load_source=options.load_source,
            load_rate=options.load_rate_bytes,
        )
        self._listener = await listen_as(
            common, self._identity, admit=self._admit, handler_factory=lambda identity: engine, pool=node.pool
        )
        await node.open(self._listener.port, lambda: engine)
        self._apply_view()
        self._on_listening(self._listener.port)
        try:
            # Entered once: the mode belongs to the thread, and everything on this loop is inference.
            with torch.inference_mode():
                await asyncio.get_running_loop().create_future()
        finally:
            await self._listener.close()
            await node.close("shutting down")
            await self._reach.rest()
            engine.close()

    def on_view(self, view: ClusterView) -> None:
        """Keep links to the expert instances of this node that ``view`` lists, and give back what it retires."""
        self._view = view
        self._apply_view()

    def _apply_view(self) -> None:
        if self._view is not None and self.engine is not None and self._reach is not None:
            self._node.update(self._view.members)
            self._reach.update(self._view.members)
            self.engine.on_view(self._view)

    def _handler(self) -> ExpertEngine:
        assert self.engine is not None  # before any link is
        return self.engine

    async def load(self, message: LoadPlacement) -> PlacementLoaded:
        """Load the slots of one epoch; one that is loading gives way to one that is newer."""
        assert self.engine is not None
        self.engine.expect(message.table)
        async with self._loading:
            return await self.engine.load(message.table)

    async def drain(self, timeout_s: float) -> None:
        """Take no new links, answer what waits: nobody plans with this instance any more."""
        self._draining = True
        if self.engine is not None and not await self.engine.drain(timeout_s):
            log.warning("drain_incomplete", limit_s=timeout_s)

    def _admit(self, identity: Identity) -> Refused | None:
        if identity.role not in ("attention", "expert", "tool"):
            problem = f"expert instances take attention and other expert instances, not {identity.role}"
            return Refused(code="wrong_role", problem=problem)
        if self._draining:
            return Refused(code="draining", problem="this expert instance is shutting down")
        return None
