"""The attention instances that can be reached: which one gets a sequence, and the messages to it."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import msgspec
import structlog

from janus.core.admission import Admission
from janus.errors import LinkError
from janus.messages.control import Cancel, ClusterView, Member
from janus.runtime.tasks import OwnedTasks
from janus.transport.link import Link
from janus_gateway.generation import Track
from janus_gateway.outbox import Outbox

log = structlog.get_logger()


class AttentionInstances:
    """Combines what admission decides with the links that are really up."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._links: Mapping[str, Link] = {}
        self._outboxes: dict[Link, Outbox] = {}
        self._tasks = OwnedTasks()
        self._members: list[Member] = []
        #: Instances that the controller calls ready, linked or not.
        self.ready: frozenset[str] = frozenset()

    def use_links(self, links: Mapping[str, Link]) -> None:
        """Set the links that are up, by instance name: a live dict, kept by its owner (``PeerSet``), read here."""
        self._links = links

    def on_view(self, view: ClusterView) -> None:
        """Follow the cluster.

        A ready instance that is linked and that the view does not know stays: the controller has restarted, and hears
        of it in a moment. One that leaves says so first (``draining``), one that fails is listed as ``failed``.
        """
        known = {member.instance for member in view.members}
        unheard = [m for m in self._members if m.instance not in known and m.instance in self._links]
        if unheard:
            view = msgspec.structs.replace(view, members=[*view.members, *unheard])
        self._admission.update(view)
        self._members = [m for m in view.members if m.role == "attention" and m.state == "ready"]
        self.ready = frozenset(member.instance for member in self._members)

    @property
    def linked(self) -> frozenset[str]:
        """Instances that take requests from here now."""
        return self.ready & self._links.keys()

    def problems(self) -> list[str]:
        """Why requests cannot be served now; empty when they can."""
        problem = self._admission.why_not_ready
        if problem:
            return [problem]
        if not self.linked:
            return [f"no link to an attention instance yet; waiting for {', '.join(sorted(self.ready))}"]
        return []

    def admit(self, track: Track) -> None:
        """Let a new sequence in and send it to an instance.

        Raises:
            Overloaded, Unavailable: not now. When nothing could be reached the sequence stays admitted: release it.
        """
        sequence = track.sequence
        instance = self._admission.admit(
            sequence.request_id,
            prompt_tokens=len(sequence.prompt_ids),
            max_tokens=sequence.params.max_tokens,
            now=track.arrived_at,
        )
        if not self._post(track, instance):
            self.move(track, avoid=(instance,))

    def move(self, track: Track, *, avoid: Collection[str]) -> None:
        """Send a sequence that is in to another instance.

        Raises:
            Unavailable: no instance besides those to ``avoid`` takes it; nothing has changed.
        """
        sequence = track.sequence
        without = {*avoid, *(self.ready - self._links.keys())}
        while True:
            instance = self._admission.move(sequence.request_id, avoid=without, resumed_tokens=sequence.known_tokens)
            if self._post(track, instance):
                return
            without.add(instance)

    def cancel(self, track: Track) -> None:
        """Tell the instance, if one has the sequence, to forget it."""
        if track.link is None or track.link.closed:
            return
        try:
            self._outbox(track.link).post(Cancel(request_id=track.sequence.wire_id))
        except LinkError as error:
            # The instance drops everything of this gateway when the link goes, and this one is as good as gone.
            log.warning("cancel_failed", peer=track.instance, problem=error.problem)

    def drop(self, link: Link) -> None:
        """``link`` is down: forget what waits for it."""
        outbox = self._outboxes.pop(link, None)
        if outbox is not None:
            outbox.close()

    async def close(self) -> None:
        """Send nothing more; for when the links are closed."""
        await self._tasks.close()

    def _post(self, track: Track, instance: str) -> bool:
        link = self._links.get(instance)
        if link is None or link.closed:
            return False
        try:
            self._outbox(link).post(track.sequence.submit())
        except LinkError as error:
            log.warning("submit_failed", peer=instance, problem=error.problem)
            return False
        track.link, track.instance = link, instance
        return True

    def _outbox(self, link: Link) -> Outbox:
        outbox = self._outboxes.get(link)
        if outbox is None:
            # A submit and a cancel for each sequence that may be there.
            waiting = 2 * self._admission.config.max_requests
            outbox = self._outboxes[link] = Outbox(link, max_waiting=waiting, tasks=self._tasks)
        return outbox
