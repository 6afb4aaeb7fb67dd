"""Links over shared memory between the instances of one role on one node: what the two-phase exchange hands around on.

Each instance dials every other one and sends what it begins over the link that it dialled; answers come back on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import structlog

from janus.errors import ConfigError
from janus.messages.control import Identity, Member, Refused
from janus.runtime.peers import PeerSet
from janus.transport.buffers import BufferPool
from janus.transport.endpoint import Listener, listen
from janus.transport.lending import shared_pool
from janus.transport.link import Link, LinkHandler

log = structlog.get_logger()


class NodeLinks:
    """Belongs to the loop that it is used on. ``links``: those that are up, by instance name."""

    def __init__(self, *, identity: Identity, secret: bytes) -> None:
        self._identity = identity
        self._secret = secret
        self.links: dict[str, Link] = {}
        self._listener: Listener | None = None
        self._peers: PeerSet | None = None
        #: Where frames from other nodes should be received, so that they can be passed on without a copy.
        self.pool: BufferPool | None = None
        try:
            self.pool = shared_pool()
        except ConfigError as error:
            log.info("no_shared_memory", problem=str(error), effect="every instance exchanges by itself")

    async def open(
        self, port: int, handler: Callable[[], LinkHandler | None], *, on_change: Callable[[], None] | None = None
    ) -> None:
        """Be reachable for siblings under the number of this instance's ``port``; ``handler`` serves their links."""
        if self.pool is None:
            return

        def admit(identity: Identity) -> Refused | None:
            own = self._identity
            if (identity.role, identity.node) != (own.role, own.node):
                problem = f"only {own.role} instances of node {own.node} are linked here"
                return Refused(code="wrong_role", problem=problem)
            if handler() is None:
                return Refused(code="draining", problem="this instance is still loading its model")
            return None

        def factory(identity: Identity) -> LinkHandler:
            found = handler()
            assert found is not None  # admitted
            return found

        try:
            self._listener = await listen(
                "shm",
                "",
                port,
                identity=self._identity,
                secret=self._secret,
                admit=admit,
                handler_factory=factory,
                pool=self.pool,
            )
        except (OSError, ConfigError) as error:
            log.warning("no_shared_memory", problem=str(error), effect="this instance exchanges by itself")
            self.pool = None
            return
        own_handler = handler()
        assert own_handler is not None  # ours is there before the first view is
        self._peers = PeerSet(
            role=self._identity.role,
            identity=self._identity,
            secret=self._secret,
            transport="shm",
            handler=own_handler,
            links=self.links,
            on_change=on_change,
            pool=self.pool,
        )

    def update(self, members: Iterable[Member]) -> None:
        """Link to those of ``members`` that share role and node with this instance."""
        own = self._identity
        if self._peers is not None:
            self._peers.update(m for m in members if m.node == own.node and m.instance != own.instance)

    async def close(self, reason: str) -> None:
        """Close every link in good order, and be reachable no more."""
        if self._peers is not None:
            await self._peers.close(reason)
        if self._listener is not None:
            await self._listener.close(reason)
