"""Links from one loop of this process to every live instance of a role, kept up as the view changes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import structlog

from janus.errors import LinkError
from janus.messages.control import Identity, Member, Role
from janus.runtime.backoff import Backoff, Reminder
from janus.runtime.tasks import OwnedTasks
from janus.transport.buffers import BufferPool
from janus.transport.contract import LinkOptions
from janus.transport.endpoint import connect
from janus.transport.link import Link, LinkHandler
from janus.transport.wire import TransportKind

log = structlog.get_logger()


@dataclass(slots=True)
class _Peer:
    member: Member
    task: asyncio.Task[None]
    problem: str = "connecting"
    #: Whether the newest view has it; one that is not listed is not dialled again once its link is gone.
    listed: bool = True


class PeerSet:
    """Dials every member of ``role``; a link that breaks is dialled again for as long as the member is in the view.

    Belongs to the loop that it is used on. ``pool`` is where frames are received, ``options`` how the links behave.
    ``links`` holds the links that are up, by instance name; it is the same dict (the caller's, if given) for the life
    of the set, so that others may keep it.
    """

    def __init__(
        self,
        *,
        role: Role,
        identity: Identity,
        secret: bytes,
        transport: TransportKind,
        handler: LinkHandler,
        links: dict[str, Link] | None = None,
        on_up: Callable[[Link], None] | None = None,
        on_change: Callable[[], None] | None = None,
        pool: BufferPool | None = None,
        options: LinkOptions | None = None,
    ) -> None:
        self._role = role
        self._identity = identity
        self._secret = secret
        self._transport: TransportKind = transport
        self._handler = handler
        self._on_up = on_up
        self._on_change = on_change
        self._pool = pool
        self._options = options
        self._peers: dict[str, _Peer] = {}
        self._tasks = OwnedTasks()
        self.links: dict[str, Link] = {} if links is None else links

    def update(self, members: Iterable[Member]) -> None:
        """Make ``members`` (those of this role, failed ones excepted) the set to be linked to.

        A peer that is linked and not in the view at all keeps its link: a controller that has restarted does not know
        it yet, and a peer that leaves closes the link itself.
        """
        own = {m.instance: m for m in members if m.role == self._role}
        wanted = {name: m for name, m in own.items() if m.state != "failed"}
        for name, peer in list(self._peers.items()):
            new = wanted.get(name)
            if new is not None and _place(new) == _place(peer.member) and not peer.task.done():
                peer.member = new
            elif new is not None or name in own or name not in self.links:
                self._drop(name)
            else:
                peer.listed = False
        for name, member in wanted.items():
            if name in self._peers:
                self._peers[name].listed = True
            else:
                task = self._tasks.start(self._keep(member), name=f"dial[{name}]", failed=partial(self._failed, member))
                self._peers[name] = _Peer(member, task)

    def unreachable(self) -> list[str]:
        """Instances that should be linked and are not, each with the last problem."""
        return [f"{n}: {p.problem}" for n, p in sorted(self._peers.items()) if n not in self.links]

    async def close(self, reason: str) -> None:
        """Close every link in good order and stop dialling."""
        links = list(self.links.values())
        self._peers.clear()
        await self._tasks.close()
        await asyncio.gather(*(link.close(reason) for link in links), return_exceptions=True)
        self.links.clear()

    def _drop(self, name: str) -> None:
        self._peers.pop(name).task.cancel()
        link = self.links.pop(name, None)
        if link is not None:
            link.abort("no longer in the view")
            self._changed()

    def _changed(self) -> None:
        if self._on_change is not None:
            self._on_change()

    async def _keep(self, member: Member) -> None:
        backoff, reminder = Backoff(), Reminder()
        while True:
            try:
                link = await connect(
                    self._transport,
                    member.host,
                    member.port,
                    identity=self._identity,
                    secret=self._secret,
                    handler=self._handler,
                    pool=self._pool,
                    options=self._options,
                )
            except LinkError as error:
                self._trouble(member, str(error))
                if reminder.due(str(error)):
                    log.warning("peer_unreachable", peer=member.instance, address=_address(member), problem=str(error))
                await asyncio.sleep(backoff.next_s())
                continue
            backoff.reset()
            reminder.due(None)
            self.links[member.instance] = link
            log.info("peer_linked", peer=member.instance, address=_address(member))
            if self._on_up is not None:
                self._on_up(link)
            self._changed()
            closed = await link.wait_closed()
            if self.links.get(member.instance) is link:
                del self.links[member.instance]
            peer = self._peers.get(member.instance)
            if peer is None or not peer.listed:
                # It has left: gone before anybody hears of a change, so that nobody goes on missing it.
                self._peers.pop(member.instance, None)
                log.info("peer_left", peer=member.instance)
                self._changed()
                return
            self._trouble(member, str(closed))
            log.warning("peer_lost", peer=member.instance, problem=str(closed))
            self._changed()
            await asyncio.sleep(backoff.next_s())

    def _failed(self, member: Member, error: BaseException) -> None:
        """Dialled again with the next view; until then it is named as one that cannot be reached."""
        self._trouble(member, f"dialling it failed ({type(error).__name__}: {error})")
        link = self.links.pop(member.instance, None)
        if link is not None:
            link.abort("nobody keeps it up")
        self._changed()

    def _trouble(self, member: Member, problem: str) -> None:
        peer = self._peers.get(member.instance)
        if peer is not None:
            peer.problem = problem


def _place(member: Member) -> tuple[str, str, int]:
    """What makes a member another process: a restart under the same name must be dialled afresh."""
    return (member.incarnation, member.host, member.port)


def _address(member: Member) -> str:
    return f"{member.host}:{member.port}"
