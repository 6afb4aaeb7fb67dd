"""The expert-server's step loop: the listener for attention instances, and the engine behind it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog
import torch

from janus.config.options import ExpertOptions
from janus.messages.control import Identity, LoadPlacement, PlacementLoaded, Refused
from janus.model.checkpoint import Checkpoint
from janus.runtime.device import prepare, torch_dtype
from janus.runtime.expert_engine import ExpertEngine
from janus.runtime.listening import listen_as
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
        self.engine: ExpertEngine | None = None

    async def run(self) -> None:
        """Listen and serve until cancelled."""
        options, common = self._options, self._options.common
        engine = self.engine = ExpertEngine(
            checkpoint=self._checkpoint,
            config=self._checkpoint.config,
            dtype=torch_dtype(options.dtype),
            device=prepare(options.device, options.threads),
            instance=common.name,
        )
        self._listener = await listen_as(
            common, self._identity, admit=self._admit, handler_factory=lambda identity: engine
        )
        self._on_listening(self._listener.port)
        try:
            # Entered once: the mode belongs to the thread, and everything on this loop is inference.
            with torch.inference_mode():
                await asyncio.get_running_loop().create_future()
        finally:
            await self._listener.close()
            engine.close()

    async def load(self, message: LoadPlacement) -> PlacementLoaded:
        """Load the slots of one epoch; epochs are applied in the order in which they came."""
        assert self.engine is not None
        async with self._loading:
            return await self.engine.load(message.table)

    async def drain(self, timeout_s: float) -> None:
        """Take no new links, answer what waits."""
        self._draining = True
        if self.engine is not None and not await self.engine.drain(timeout_s):
            log.warning("drain_incomplete", limit_s=timeout_s)

    def _admit(self, identity: Identity) -> Refused | None:
        if identity.role not in ("attention", "tool"):
            return Refused(code="wrong_role", problem=f"expert instances take attention instances, not {identity.role}")
        if self._draining:
            return Refused(code="draining", problem="this expert instance is shutting down")
        return None
