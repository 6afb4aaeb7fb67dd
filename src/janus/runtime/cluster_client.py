"""An instance's tie to the placement-controller: registration, heartbeats, and the view that comes back."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Protocol

import structlog

from janus.config.options import CommonOptions
from janus.errors import LinkBusy, LinkError, PeerRefused
from janus.messages import Message
from janus.messages.control import (
    ClusterView,
    Fatal,
    Heartbeat,
    Identity,
    Leave,
    LoadPlacement,
    PlacementLoaded,
    Register,
    Registered,
)
from janus.runtime.backoff import Backoff, Reminder
from janus.runtime.tasks import OwnedTasks
from janus.transport.endpoint import connect
from janus.transport.link import InFrame, Link

log = structlog.get_logger()

_CALL_TIMEOUT_S = 5.0
#: Refusals that no amount of waiting will cure. A duplicate name may be our own dead predecessor: that one is retried.
_HOPELESS = frozenset({"wrong_secret", "wrong_protocol", "wrong_model", "wrong_dtype", "wrong_role"})


class ClusterEvents(Protocol):
    """What an instance does about news from the controller. Called on the control loop; must not block."""

    def register(self) -> Register:
        """What to register with, at every (re)connect."""

    def heartbeat(self) -> Heartbeat:
        """The state to report now."""

    def on_view(self, view: ClusterView) -> None:
        """A newer view is in force."""

    def on_load_placement(self, message: LoadPlacement) -> None:
        """Expert instances: load these slots, then ``ClusterClient.placement_loaded``."""

    def on_fatal(self, problem: str) -> None:
        """This instance cannot be part of the cluster."""


class ClusterClient:
    """Keeps the link to the controller for as long as the service runs.

    Without a controller the last view stays in force: it is never on the token path.
    """

    def __init__(self, *, common: CommonOptions, identity: Identity, secret: bytes, events: ClusterEvents) -> None:
        self._common = common
        self._identity = identity
        self._secret = secret
        self._events = events
        self._tasks = OwnedTasks()
        self._link: Link | None = None
        self._missing = Reminder()
        self._leaving = False
        self.view: ClusterView | None = None

    @property
    def connected(self) -> bool:
        """Whether the controller is linked now."""
        return self._link is not None and not self._link.closed

    async def wait_lost(self) -> None:
        """Return once no controller is linked, which may be now."""
        if self._link is not None:
            await self._link.wait_closed()

    def start(self) -> None:
        """Begin to look for the controller."""
        self._tasks.start(self._run(), name="cluster-client", failed=self._failed)

    def leave(self, reason: str) -> None:
        """Tell the controller that this instance drains; it will not be planned with any more."""
        self._leaving = True
        self._post(Leave(reason=reason))

    def report_now(self) -> None:
        """Send a heartbeat at once, because the state has just changed."""
        self._post(self._events.heartbeat())

    def placement_loaded(self, message: PlacementLoaded) -> None:
        """Report the replicas of an epoch as loaded (or not)."""
        self._post(message)

    def post(self, message: Message) -> None:
        """Send ``message`` if the controller is there now; dropped without one."""
        self._post(message)

    async def close(self, reason: str) -> None:
        """Take leave of the controller."""
        await self._tasks.close()
        if self._link is not None:
            await self._link.close(reason)

    def _failed(self, error: BaseException) -> None:
        """An instance that nobody dials the controller for would serve on unseen: better it ends, and is restarted."""
        self._events.on_fatal(f"the link to the controller is kept up no more ({type(error).__name__}: {error})")

    def _post(self, message: Message) -> None:
        if self._link is None or self._link.closed:
            return
        try:
            self._link.post_message(message)
        except LinkBusy:
            log.warning("controller_slow", unsent=type(message).__name__)
        except LinkError:
            pass  # the run loop sees the same and reconnects

    async def _run(self) -> None:
        host, port = self._common.controller_address
        backoff, reminder = Backoff(), Reminder()
        while True:
            try:
                link = await connect(
                    self._common.transport, host, port, identity=self._identity, secret=self._secret, handler=self
                )
                self._link = link
                await self._serve(link, backoff)
                problem = "link closed"
            except PeerRefused as error:
                if error.code in _HOPELESS:
                    self._events.on_fatal(str(error))
                    return
                problem = str(error)
            except LinkError as error:
                problem = str(error)
            if reminder.due(problem) and not self._leaving:
                log.warning("waiting_for_controller", address=f"{host}:{port}", problem=problem)
            await asyncio.sleep(backoff.next_s())

    async def _serve(self, link: Link, backoff: Backoff) -> None:
        answer = await link.call(self._events.register(), timeout_s=_CALL_TIMEOUT_S)
        if isinstance(answer, Fatal):
            self._events.on_fatal(answer.problem)
            return
        if not isinstance(answer, Registered):
            raise LinkError(link.address, f"answered a registration with {type(answer).__name__}")
        backoff.reset()
        log.info("registered", controller=link.address)
        while not link.closed:
            self._post(self._events.heartbeat())
            self._remind()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(answer.heartbeat_s):
                    await link.wait_closed()
        # Not within the wait: the link may just as well end between two of them.
        log.warning("controller_lost", problem=str(link.error))

    def _remind(self) -> None:
        missing = tuple(self.view.missing) if self.view is not None and self.view.missing else None
        if self._missing.due(missing):
            log.warning("waiting_for_instances", missing=list(missing or ()))

    # -- LinkHandler ---------------------------------------------------------------------------------------------

    def on_message(self, link: Link, request_id: int, message: Message) -> None:
        """News from the controller."""
        match message:
            case ClusterView():
                self.view = message
                self._events.on_view(message)
                self._remind()
            case LoadPlacement():
                self._events.on_load_placement(message)
            case Fatal():
                self._events.on_fatal(message.problem)
            case _:
                log.warning("unexpected_message", peer=link.peer.instance, message=type(message).__name__)

    def on_frame(self, link: Link, frame: InFrame) -> None:
        """No tensors come from a controller."""
        frame.release()

    def on_closed(self, link: Link, error: LinkError) -> None:
        """The run loop waits for this by itself."""
