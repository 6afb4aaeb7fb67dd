"""Who is in the cluster: the placement-controller's registry as a state machine.

``handle(event)`` returns what is to be done. Instances register, send heartbeats, drain and die; every change yields a
new ``ClusterView``. The roster names the instances that the cluster was started with: they are ``missing`` while they
are not there. Others may join and leave live.
"""

from __future__ import annotations

from collections.abc import Mapping

from janus.core.epochs import ModelShape, PlacementEpochs
from janus.core.membership_events import (
    Action,
    Event,
    HeartbeatSeen,
    LeaveSeen,
    LinkLost,
    Log,
    MarkFailed,
    PlacementLoadedSeen,
    RefuseDuplicate,
    Registered,
    SendFatal,
    SendRegistered,
    SendView,
    Tick,
)
from janus.core.roster import MemberRecord, natural_order, roster
from janus.messages.control import ClusterView, Identity, Role, StatusReport

__all__ = ["Membership", "ModelShape", "roster"]

#: A member is silent, and so failed, after this many heartbeat intervals without one. A process that died is noticed
#: by its link, within milliseconds; silence is for one that hangs. With 3 (1.5 s) an attention instance under 64
#: streams was given up, alive, on two cores that five others wanted too.
SILENT_AFTER_HEARTBEATS = 8
#: Seconds after which whatever the cluster still waits for is logged, at first and then again.
FIRST_REPORT_S, REPORT_EVERY_S = 2.0, 5.0
_MEMBER_ROLES: tuple[Role, ...] = ("gateway", "attention", "expert")


class Membership:
    """The registry. Not thread-safe, and as fast as what an event changes: a heartbeat without news is O(1)."""

    def __init__(
        self,
        *,
        shape: ModelShape,
        expected: Mapping[str, Role],
        heartbeat_s: float,
        now: float,
        first_version: int = 1,
    ) -> None:
        """Args:
        expected: the roster, see ``roster``.
        now: when the controller started.
        first_version: of the first view. A controller that may have had a predecessor passes a number that grows
            from start to start, so that no instance takes its views for old ones.
        """
        self.heartbeat_s = heartbeat_s
        self._expected = dict(expected)
        self._members: dict[str, MemberRecord] = {}
        self._epochs = PlacementEpochs(shape)
        self._started = now
        self._report_at = now + FIRST_REPORT_S
        self._version = first_version - 1
        self._view = ClusterView(version=self._version, members=[], missing=list(self._expected), placement=None)

    # -- what is known ---------------------------------------------------------------------------------------------

    @property
    def view(self) -> ClusterView:
        """The newest view; its version is one below the first before any event."""
        return self._view

    @property
    def missing(self) -> list[str]:
        """Expected instances that are not there, in the order of the roster."""
        return [name for name in self._expected if not self._is_there(name)]

    @property
    def waiting_for(self) -> list[str]:
        """Why there is no placement in force, or not yet the newest one: one sentence per cause."""
        sentences = [f"{name} has not registered" for name in self.missing]
        for epoch, names in self._epochs.waiting_for.items():
            sentences += [f"{name} is loading the experts of epoch {epoch}" for name in names]
        return [*sentences, self._epochs.problem] if self._epochs.problem else sentences

    def report(self, now: float) -> StatusReport:
        """Return everything that ``janus status`` shows."""
        beats = {name: member.heartbeat for name, member in self._members.items() if member.heartbeat is not None}
        return StatusReport(
            view=self._view,
            heartbeats=beats,
            heartbeat_age_s={name: now - self._members[name].last_seen for name in beats},
            started_s=now - self._started,
        )

    # -- events ----------------------------------------------------------------------------------------------------

    def handle(self, event: Event) -> list[Action]:
        """Return the actions for ``event``, in the order in which they are to be done. Never raises for an event."""
        match event:
            case Registered():
                return self._on_registered(event)
            case HeartbeatSeen():
                return self._on_heartbeat(event)
            case LinkLost():
                return self._on_link_lost(event)
            case LeaveSeen():
                return self._on_leave(event)
            case PlacementLoadedSeen():
                return self._on_loaded(event)
            case Tick():
                return self._on_tick(event.now)

    def _on_registered(self, event: Registered) -> list[Action]:
        identity, register = event.identity, event.register
        name = identity.instance
        problem = self._misfit(identity)
        if problem:
            return [
                SendFatal(instance=name, incarnation=identity.incarnation, problem=problem),
                Log(level="error", event="registration_refused", fields={"instance": name, "problem": problem}),
            ]
        known = self._members.get(name)
        if known is not None and known.state != "failed" and known.identity.incarnation != identity.incarnation:
            problem = (
                f"an instance named {name} is registered already, at {known.register.host}:{known.register.port} "
                f"(pid {known.register.pid}, heard of {event.now - known.last_seen:.1f} s ago); "
                "stop that one or give this one another name"
            )
            return [
                RefuseDuplicate(instance=name, incarnation=identity.incarnation, problem=problem),
                Log(level="error", event="duplicate_refused", fields={"instance": name, "problem": problem}),
            ]
        record = MemberRecord(identity, register, last_seen=event.now)
        if known is not None and known.identity.incarnation == identity.incarnation and known.state != "failed":
            record.state = known.state  # the same process over a new link
        self._members[name] = record
        self._epochs.saw_epoch(register.loaded_epoch)
        fields: dict[str, object] = {"instance": name, "role": identity.role, "again": known is not None}
        return [
            SendRegistered(instance=name, heartbeat_s=self.heartbeat_s),
            Log(level="info", event="instance_registered", fields=fields),
            *self._reconcile(identity.role),
            *self._publish(even_unchanged=True),
        ]

    def _on_heartbeat(self, event: HeartbeatSeen) -> list[Action]:
        member = self._live(event.instance, event.incarnation)
        if member is None:
            return []
        beat = event.heartbeat
        member.last_seen, member.heartbeat = event.now, beat
        if beat.state == "failed":
            return self._fail(event.instance, beat.reason or "it reported a failure")
        actions: list[Action] = []
        if beat.loaded_epoch:
            actions += self._epochs.loaded(event.instance, beat.loaded_epoch)
        # Who has said Leave drains to its end, whatever a heartbeat that was on its way says.
        changed = member.state not in (beat.state, "draining")
        if changed:
            member.state = beat.state
        if changed and beat.state == "draining":
            actions += self._reconcile(member.identity.role)
        return [*actions, *self._publish()] if actions or changed else []

    def _on_link_lost(self, event: LinkLost) -> list[Action]:
        member = self._live(event.instance, event.incarnation)
        if member is None:
            return []
        return self._fail(event.instance, "it has left" if member.state == "draining" else "its link was lost")

    def _on_leave(self, event: LeaveSeen) -> list[Action]:
        member = self._live(event.instance, event.incarnation)
        if member is None or member.state == "draining":
            return []
        member.state = "draining"
        return [
            Log(level="info", event="instance_draining", fields={"instance": event.instance, "reason": event.reason}),
            *self._reconcile(member.identity.role),
            *self._publish(),
        ]

    def _on_loaded(self, event: PlacementLoadedSeen) -> list[Action]:
        member = self._live(event.instance, event.incarnation)
        if member is None:
            return []
        message = event.message
        if message.error:
            problem = f"could not load its experts of epoch {message.epoch}: {message.error}"
            incarnation = member.identity.incarnation
            fatal = SendFatal(instance=event.instance, incarnation=incarnation, problem=problem)
            return [fatal, *self._fail(event.instance, problem)]
        return [*self._epochs.loaded(event.instance, message.epoch), *self._publish()]

    def _on_tick(self, now: float) -> list[Action]:
        actions: list[Action] = []
        limit = SILENT_AFTER_HEARTBEATS * self.heartbeat_s
        for name, member in tuple(self._members.items()):
            if member.state != "failed" and now - member.last_seen > limit:
                actions += self._fail(name, f"no heartbeat for {now - member.last_seen:.1f} s")
        if now >= self._report_at:
            self._report_at = now + REPORT_EVERY_S
            waiting = self.waiting_for
            if waiting:
                fields: dict[str, object] = {"missing": self.missing, "reasons": waiting}
                actions.append(Log(level="warning", event="cluster_waits", fields=fields))
        return actions

    # -- parts -----------------------------------------------------------------------------------------------------

    def _is_there(self, name: str) -> bool:
        member = self._members.get(name)
        return member is not None and member.state != "failed"

    def _live(self, name: str, incarnation: str) -> MemberRecord | None:
        """Return the member that an event is about, ``None`` if that process is not registered (any more)."""
        member = self._members.get(name)
        if member is None or member.state == "failed" or incarnation not in ("", member.identity.incarnation):
            return None
        return member

    def _misfit(self, identity: Identity) -> str:
        if identity.role not in _MEMBER_ROLES:
            return f"a {identity.role} does not register; only {', '.join(_MEMBER_ROLES)} instances do"
        expected = self._expected.get(identity.instance, identity.role)
        if identity.role != expected:
            return f"{identity.instance} is expected to be of role {expected}, this one is {identity.role}; rename it"
        return ""

    def _fail(self, name: str, why: str) -> list[Action]:
        member = self._members[name]
        left = member.state == "draining"
        member.state = "failed"
        if name not in self._expected:
            del self._members[name]
        fields: dict[str, object] = {"instance": name, "why": why}
        return [
            MarkFailed(instance=name, why=why),
            Log(level="info" if left else "error", event="instance_left" if left else "instance_failed", fields=fields),
            *self._reconcile(member.identity.role),
            *self._publish(),
        ]

    def _reconcile(self, role: Role) -> list[Action]:
        """Let the placement follow, when the change was about an expert instance."""
        if role != "expert":
            return []
        experts = {
            name: member
            for name, member in self._members.items()
            if member.identity.role == "expert" and member.state != "failed"
        }
        names = [name for name, expected_role in self._expected.items() if expected_role == "expert"]
        names += sorted((name for name in experts if name not in self._expected), key=natural_order)
        # A draining instance serves on in the placement in force, and has no part in a new one.
        wanted = tuple(name for name in names if name in experts and experts[name].state != "draining")
        complete = bool(wanted) and all(name in wanted for name in names if name in self._expected)
        slots = min((experts[name].register.slots for name in wanted if experts[name].register.slots), default=0)
        actions = self._epochs.reconcile(
            alive={name: member.identity.incarnation for name, member in experts.items()},
            wanted=wanted if complete else None,
            slots=slots,
            nodes={name: member.identity.node for name, member in experts.items()},
        )
        if self._epochs.problem and not self._epochs.was_in_force:
            # It was never enough: the user is told by every expert instance, not left waiting.
            for name, member in experts.items():
                incarnation = member.identity.incarnation
                actions.append(SendFatal(instance=name, incarnation=incarnation, problem=self._epochs.problem))
        return actions

    def _publish(self, *, even_unchanged: bool = False) -> list[Action]:
        """Return the view if it differs from the last one."""
        records = sorted(self._members.values(), key=lambda record: record.order)
        members = [record.message for record in records]
        missing, placement = self.missing, self._epochs.in_force
        old = self._view
        if not even_unchanged and (members, missing) == (old.members, old.missing) and placement is old.placement:
            return []
        self._version += 1
        self._view = ClusterView(version=self._version, members=members, missing=missing, placement=placement)
        return [SendView(view=self._view)]
