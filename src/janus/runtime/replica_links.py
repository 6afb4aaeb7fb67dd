"""Links to expert instances that have replicas: those to siblings are there; others are dialled while loading."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping

from janus.errors import LinkBroken
from janus.messages.control import Identity, Member
from janus.transport.buffers import BufferPool
from janus.transport.endpoint import connect
from janus.transport.link import Link, LinkHandler
from janus.transport.wire import TransportKind

#: A peer that hangs must not hold up the report of what was loaded.
_CLOSE_S = 0.2


class ReplicaLinks:
    """For one loop. ``siblings``: links that are kept up by others, by instance."""

    def __init__(
        self,
        *,
        identity: Identity,
        secret: bytes,
        transport: TransportKind,
        siblings: Mapping[str, Link],
        handler: Callable[[], LinkHandler],
        pool: BufferPool | None = None,
    ) -> None:
        """``handler``: of the links that are dialled here. ``pool``: where frames are received."""
        self._identity = identity
        self._secret = secret
        self._transport: TransportKind = transport
        self._siblings = siblings
        self._handler = handler
        self._pool = pool
        self._members: dict[str, Member] = {}
        self._dialled: dict[str, Link] = {}

    def update(self, members: Iterable[Member]) -> None:
        """Take the members of a view."""
        own = self._identity.instance
        self._members = {
            m.instance: m for m in members if m.role == "expert" and m.instance != own and m.state != "failed"
        }

    def knows(self, instance: str) -> bool:
        """Whether the newest view has ``instance``, and not as failed."""
        return instance in self._members

    async def to(self, instance: str) -> Link:
        """Return a link to ``instance`` that is up.

        Raises:
            LinkError: it is not in the view, or cannot be reached.
        """
        for known in (self._siblings, self._dialled):
            link = known.get(instance)
            if link is not None and not link.closed:
                return link
        member = self._members.get(instance)
        if member is None:
            raise LinkBroken(instance, "is not in the view")
        link = await connect(
            self._transport,
            member.host,
            member.port,
            identity=self._identity,
            secret=self._secret,
            handler=self._handler(),
            pool=self._pool,
        )
        self._dialled[instance] = link
        return link

    async def rest(self) -> None:
        """Close what was dialled."""
        links = list(self._dialled.values())
        self._dialled.clear()
        closing = (link.close("replicas are loaded", timeout_s=_CLOSE_S) for link in links)
        await asyncio.gather(*closing, return_exceptions=True)
