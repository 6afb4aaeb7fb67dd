"""Who is in the cluster: the placement-controller's registry as a state machine.

``handle(event)`` returns what is to be done. Instances register, send heartbeats, drain and die; every change yields a
new ``ClusterView``. As many instances of each role are expected as the cluster was started with, or scaled to: while
there are fewer, those of the roster that are not there are ``missing``. More may join and leave live.
"""

from __future__ import annotations

from collections.abc import Mapping

from janus.core import standing
from janus.core.epochs import PlacementEpochs
from janus.core.goals import Candidate, ModelShape
from janus.core.membership_events import (
    Action,
    Event,
    ExpectedSet,
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
    TargetProposed,
    Tick,
)
from janus.core.placing import POLICIES
from janus.core.placing.contract import Activity, PlacingPolicy, PlacingRequest
from janus.core.registry import MEMBER_ROLES, Registry
from janus.core.roster import MemberRecord, roster
from janus.messages.control import ClusterView, Failure, Register, Role, StatusReport

__all__ = ["Membership", "ModelShape", "roster"]

#: A member is silent, and so failed, after this many heartbeat intervals without one. A process that died is noticed
#: by its link, within milliseconds; silence is for one that hangs. With 3 (1.5 s) an attention instance under 64
#: streams was given up, alive, on two cores that five others wanted too.
SILENT_AFTER_HEARTBEATS = 8
#: The same for an expert instance that an attention instance waits for in vain: two witnesses are enough.
SILENT_AFTER_HEARTBEATS_IF_SUSPECTED = 2.2
#: An instance that could not load its replicas is given no new ones for so many seconds; doubled each time it happens.
FROZEN_S, FROZEN_MOST_S = 10.0, 300.0
#: How long a controller that finds expert instances loaded by an earlier one waits for the attention instances, which
#: know the placement.
RECALL_S = 5.0
#: Seconds after which whatever the cluster still waits for is logged, at first and then again.
FIRST_REPORT_S, REPORT_EVERY_S = 2.0, 5.0


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
        policy: PlacingPolicy = POLICIES["static"],
        fill: int = 0,
    ) -> None:
        """Args:
        expected: the roster, see ``roster``.
        now: when the controller started.
        first_version: of the first view. A controller that may have had a predecessor passes a number that grows
            from start to start, so that no instance takes its views for old ones.
        policy, fill: see ``PlacementEpochs``.
        """
        self.heartbeat_s = heartbeat_s
        self._registry = Registry(expected)
        self._epochs = PlacementEpochs(shape, policy=policy, fill=fill)
        self._started = now
        self._report_at = now + FIRST_REPORT_S
        self._last_failure: tuple[str, str, float] | None = None
        self._version = first_version - 1
        self._view = ClusterView(version=self._version, members=[], missing=list(self._registry.roster), placement=None)

    # -- what is known ---------------------------------------------------------------------------------------------

    @property
    def view(self) -> ClusterView:
        """The newest view; its version is one below the first before any event."""
        return self._view

    @property
    def expected(self) -> Mapping[Role, int]:
        """How many instances of each role there are to be."""
        return self._registry.expected

    @property
    def missing(self) -> list[str]:
        """Instances of the roster that are not there, as many as there are too few; by role, in order."""
        return self._registry.missing

    @property
    def waiting_for(self) -> list[str]:
        """Why there is no placement in force, or not yet the newest one: one sentence per cause."""
        return standing.waiting_for(self._registry, self._epochs)

    @property
    def degraded(self) -> list[str]:
        """Why the cluster is not as it should be: one sentence per cause, empty when all is well."""
        return standing.degraded(self._registry, self._epochs)

    def placing_request(self) -> PlacingRequest | None:
        """Return what to ask a policy, to find a better placement; ``None`` while the cluster is changing."""
        return self._epochs.request()

    def batch(self) -> int:
        """Tokens of a decode step: streams per attention instance that has any, at least 1."""
        return self._registry.batch()

    def use_activity(self, activity: Activity) -> None:
        """Place by ``activity`` from the next change on."""
        self._epochs.use_activity(activity)

    def report(self, now: float) -> StatusReport:
        """Return everything that ``janus status`` shows."""
        beats = {
            name: member.heartbeat for name, member in self._registry.members.items() if member.heartbeat is not None
        }
        return StatusReport(
            view=self._view,
            heartbeats=beats,
            heartbeat_age_s={name: now - self._registry.members[name].last_seen for name in beats},
            started_s=now - self._started,
            last_move=self._epochs.last_move,
            last_failure=self._failure(now),
            degraded=self.degraded,
            replicas=self._epochs.replicas(),
        )

    def _failure(self, now: float) -> Failure | None:
        if self._last_failure is None:
            return None
        instance, why, at = self._last_failure
        return Failure(instance=instance, why=why, age_s=now - at)

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
            case ExpectedSet():
                return self._on_expected(event)
            case TargetProposed():
                proposed = self._epochs.propose(event.request, event.held, a_max=event.a_max, now=event.now)
                return [*proposed, *self._publish()]
            case Tick():
                return self._on_tick(event.now)

    def _on_registered(self, event: Registered) -> list[Action]:
        identity, register = event.identity, event.register
        name = identity.instance
        problem = self._registry.misfit(identity)
        if problem:
            return [
                SendFatal(instance=name, incarnation=identity.incarnation, problem=problem),
                Log(level="error", event="registration_refused", fields={"instance": name, "problem": problem}),
            ]
        known = self._registry.members.get(name)
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
        self._registry.members[name] = record
        self._epochs.saw_epoch(register.loaded_epoch)
        recalled = self._recall(register)
        fields: dict[str, object] = {"instance": name, "role": identity.role, "again": known is not None}
        return [
            SendRegistered(instance=name, heartbeat_s=self.heartbeat_s),
            Log(level="info", event="instance_registered", fields=fields),
            *recalled,
            *self._reconcile(event.now, identity.role),
            *self._publish(even_unchanged=True),
        ]

    def _recall(self, register: Register) -> list[Action]:
        """Learn the placement that an attention instance plans with."""
        if register.placement is None:
            return []
        try:
            self._epochs.remember(register.placement)
        except ValueError as error:
            return [Log(level="warning", event="placement_not_understood", fields={"problem": str(error)})]
        return []

    def _on_heartbeat(self, event: HeartbeatSeen) -> list[Action]:
        member = self._registry.live(event.instance, event.incarnation)
        if member is None:
            return []
        beat = event.heartbeat
        before = 0 if member.heartbeat is None else member.heartbeat.oldest_epoch
        member.last_seen, member.heartbeat = event.now, beat
        if beat.state == "failed":
            return self._fail(event.instance, beat.reason or "it reported a failure", event.now)
        actions: list[Action] = []
        if beat.loaded_epoch:
            actions += self._epochs.loaded(event.instance, beat.loaded_epoch, now=event.now)
        retires = beat.oldest_epoch != before
        if retires:
            actions += self._epochs.retire(self._oldest_epoch(), now=event.now)
        if beat.suspects:
            actions += self._judge_suspects(event.now)
        # Who has said Leave drains to its end, whatever a heartbeat that was on its way says.
        changed = member.state not in (beat.state, "draining")
        if changed:
            member.state = beat.state
        if changed and beat.state == "draining":
            actions += self._reconcile(event.now, member.identity.role)
        return [*actions, *self._publish()] if actions or changed or retires else []

    def _on_link_lost(self, event: LinkLost) -> list[Action]:
        member = self._registry.live(event.instance, event.incarnation)
        if member is None:
            return []
        why = "it has left" if member.state == "draining" else "its link was lost"
        return self._fail(event.instance, why, event.now)

    def _on_leave(self, event: LeaveSeen) -> list[Action]:
        member = self._registry.live(event.instance, event.incarnation)
        if member is None or member.state == "draining":
            return []
        member.state = "draining"
        return [
            Log(level="info", event="instance_draining", fields={"instance": event.instance, "reason": event.reason}),
            *self._reconcile(event.now, member.identity.role),
            *self._publish(),
        ]

    def _on_expected(self, event: ExpectedSet) -> list[Action]:
        self._registry.resize(gateways=event.gateways, attention=event.attention, experts=event.experts)
        fields: dict[str, object] = {role: self._registry.expected[role] for role in MEMBER_ROLES}
        return [
            Log(level="info", event="cluster_size_set", fields=fields),
            *self._reconcile(event.now),
            *self._publish(even_unchanged=True),
        ]

    def _on_loaded(self, event: PlacementLoadedSeen) -> list[Action]:
        member = self._registry.live(event.instance, event.incarnation)
        if member is None:
            return []
        message = event.message
        if message.error:
            return self._on_load_failed(event, member)
        member.load_problem, member.load_failures = "", 0
        actions = self._epochs.loaded(event.instance, message.epoch, now=event.now, nbytes=message.bytes_read)
        return [*actions, *self._publish()]

    def _on_load_failed(self, event: PlacementLoadedSeen, member: MemberRecord) -> list[Action]:
        """The move is rolled back; at the start there is nothing to go back to, so the instance is told to give up."""
        message, name = event.message, event.instance
        if not self._epochs.was_in_force:
            problem = f"could not load its experts of epoch {message.epoch}: {message.error}"
            fatal = SendFatal(instance=name, incarnation=member.identity.incarnation, problem=problem)
            return [fatal, *self._fail(name, problem, event.now)]
        rolled_back = self._epochs.failed(name, message.epoch, message.error, now=event.now)
        if not rolled_back:
            return []  # of an epoch that was given up already
        member.load_problem = message.error
        member.frozen_until = event.now + min(FROZEN_S * 2**member.load_failures, FROZEN_MOST_S)
        member.load_failures += 1
        return [*rolled_back, *self._reconcile(event.now), *self._publish()]

    def _on_tick(self, now: float) -> list[Action]:
        actions: list[Action] = []
        limit = SILENT_AFTER_HEARTBEATS * self.heartbeat_s
        for name, member in tuple(self._registry.members.items()):
            if member.state != "failed" and now - member.last_seen > limit:
                actions += self._fail(name, f"no heartbeat for {now - member.last_seen:.1f} s", now)
        actions += self._judge_suspects(now)
        thawed = [
            member for member in self._registry.members.values() if member.frozen_until and now >= member.frozen_until
        ]
        for member in thawed:
            member.frozen_until = 0.0
        if thawed or (not self._epochs.was_in_force and now - self._started > RECALL_S):
            actions += self._reconcile(now)
        actions += self._epochs.tick(now)
        if now >= self._report_at:
            self._report_at = now + REPORT_EVERY_S
            waiting = self.waiting_for
            if waiting:
                fields: dict[str, object] = {"missing": self.missing, "reasons": waiting}
                actions.append(Log(level="warning", event="cluster_waits", fields=fields))
        return [*actions, *self._publish()]

    # -- parts -----------------------------------------------------------------------------------------------------

    def _fail(self, name: str, why: str, now: float) -> list[Action]:
        member = self._registry.members[name]
        left = member.state == "draining"
        member.state = "failed"
        if name not in self._registry.roster:
            del self._registry.members[name]
        if not left:
            self._last_failure = (name, why, now)
        fields: dict[str, object] = {"instance": name, "why": why}
        return [
            MarkFailed(instance=name, why=why),
            Log(level="info" if left else "error", event="instance_left" if left else "instance_failed", fields=fields),
            *self._reconcile(now, member.identity.role),
            *self._publish(),
        ]

    def _judge_suspects(self, now: float) -> list[Action]:
        """An instance that is late for others and silent here hangs: it is given up sooner than by silence alone."""
        limit = SILENT_AFTER_HEARTBEATS_IF_SUSPECTED * self.heartbeat_s
        actions: list[Action] = []
        for name, by in self._registry.suspected().items():
            silent = now - self._registry.members[name].last_seen
            if silent > limit and self._registry.is_there(name):
                actions += self._fail(name, f"no heartbeat for {silent:.1f} s, and it is late for {by}", now)
        return actions

    def _oldest_epoch(self) -> int:
        """The oldest epoch that a dispatch may still name; 0 before any was in force."""
        in_force = self._epochs.placement
        return 0 if in_force is None else self._registry.oldest_epoch(in_force=in_force.epoch)

    def _reconcile(self, now: float, role: Role = "expert") -> list[Action]:
        """Let the placement follow, when the change was about an expert instance, or nothing is in force yet."""
        if role != "expert" and self._epochs.was_in_force:
            return []
        candidates = self._registry.candidates(now)
        wanted = sum(candidate.wanted for candidate in candidates)
        complete = wanted >= max(1, self._registry.expected["expert"]) and self._may_start(candidates, now)
        # Instances that are gone, or leave, must not keep a controller that has restarted from taking over.
        recalled = bool(wanted) and now - self._started > RECALL_S
        actions = self._epochs.reconcile(candidates, complete=complete, now=now, recalled=recalled)
        if self._epochs.problem and not self._epochs.was_in_force:
            # It was never enough: the user is told by every expert instance, not left waiting.
            for candidate in candidates:
                fatal = SendFatal(
                    instance=candidate.name, incarnation=candidate.incarnation, problem=self._epochs.problem
                )
                actions.append(fatal)
        return actions

    def _may_start(self, candidates: list[Candidate], now: float) -> bool:
        """Whether a first placement may be made: not while a cluster that serves may still tell which one it has."""
        if self._epochs.knows or all(candidate.loaded_epoch == 0 for candidate in candidates):
            return True
        there = self._registry.count("attention")
        return there >= self._registry.expected["attention"] or now - self._started > RECALL_S

    def _publish(self, *, even_unchanged: bool = False) -> list[Action]:
        """Return the view if it differs from the last one."""
        members, missing = self._registry.messages(), self.missing
        placement, oldest = self._epochs.in_force, self._oldest_epoch()
        old = self._view
        unchanged = (members, missing, oldest) == (old.members, old.missing, old.oldest_epoch)
        if not even_unchanged and unchanged and placement is old.placement:
            return []
        self._version += 1
        self._view = ClusterView(
            version=self._version, members=members, missing=missing, placement=placement, oldest_epoch=oldest
        )
        return [SendView(view=self._view)]
