"""Who is in the cluster, as the placement-controller knows it: those that should be there, and those that are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from janus.core.goals import Candidate
from janus.core.roster import MemberRecord, roster
from janus.messages.control import Identity, Member, Role

#: Roles that register.
MEMBER_ROLES: tuple[Role, ...] = ("gateway", "attention", "expert")


class Registry:
    """State alone: what is to be done about a change is ``Membership``'s to decide."""

    def __init__(self, expected: Mapping[str, Role]) -> None:
        """``expected``: the roster, see ``roster``."""
        self.expected: Counter[Role] = Counter(expected.values())
        self.roster = dict(expected)
        self.members: dict[str, MemberRecord] = {}

    def resize(self, *, gateways: int, attention: int, experts: int) -> None:
        """There should be as many instances of each role from now on."""
        self.expected = Counter({"gateway": gateways, "attention": attention, "expert": experts})
        self.roster = roster(attention=attention, experts=experts, gateways=gateways)

    @property
    def missing(self) -> list[str]:
        """Instances of the roster that are not there, as many as there are too few; by role, in order."""
        there = Counter(member.identity.role for member in self.members.values() if member.state != "failed")
        missing: list[str] = []
        for role in MEMBER_ROLES:
            lacking = self.expected[role] - there[role]
            if lacking > 0:
                names = [name for name, of in self.roster.items() if of == role and not self.is_there(name)]
                missing += names[:lacking]
        return missing

    def is_there(self, name: str) -> bool:
        """Return whether an instance has registered, and has not failed."""
        member = self.members.get(name)
        return member is not None and member.state != "failed"

    def live(self, name: str, incarnation: str) -> MemberRecord | None:
        """Return the member that an event is about, ``None`` if that process is not registered (any more)."""
        member = self.members.get(name)
        if member is None or member.state == "failed" or incarnation not in ("", member.identity.incarnation):
            return None
        return member

    def count(self, role: Role) -> int:
        """Return how many instances of ``role`` are there."""
        return sum(m.identity.role == role and m.state != "failed" for m in self.members.values())

    def messages(self) -> list[Member]:
        """Return the instances as views list them, in order."""
        return [record.message for record in sorted(self.members.values(), key=lambda record: record.order)]

    def misfit(self, identity: Identity) -> str:
        """Return why an instance cannot be a member; empty when it can."""
        if identity.role not in MEMBER_ROLES:
            return f"a {identity.role} does not register; only {', '.join(MEMBER_ROLES)} instances do"
        expected = self.roster.get(identity.instance, identity.role)
        if identity.role != expected:
            return f"{identity.instance} is expected to be of role {expected}, this one is {identity.role}; rename it"
        return ""

    def suspected(self) -> dict[str, str]:
        """{expert instance: an attention instance that waits for its answers in vain}."""
        return {
            suspect: name
            for name, member in self.members.items()
            if member.state != "failed" and member.heartbeat is not None
            for suspect in member.heartbeat.suspects
            if self.is_there(suspect)
        }

    def oldest_epoch(self, *, in_force: int) -> int:
        """The oldest epoch that a dispatch of any attention instance may still name; ``in_force`` where none says."""
        reported = (
            member.heartbeat.oldest_epoch
            for member in self.members.values()
            if member.state != "failed" and member.heartbeat is not None and member.heartbeat.oldest_epoch
        )
        return min(reported, default=in_force)

    def batch(self) -> int:
        """Tokens of a decode step: streams per attention instance that has any, at least 1."""
        running = [
            member.heartbeat.running
            for member in self.members.values()
            if member.identity.role == "attention" and member.state != "failed" and member.heartbeat is not None
        ]
        busy = [count for count in running if count]
        return max(1, round(sum(busy) / len(busy))) if busy else 1

    def candidates(self, now: float) -> list[Candidate]:
        """Return the expert instances that a placement may use, in order."""
        experts = sorted(
            (m for m in self.members.values() if m.identity.role == "expert" and m.state != "failed"),
            key=lambda member: member.order,
        )
        return [
            Candidate(
                name=member.identity.instance,
                incarnation=member.identity.incarnation,
                node=member.identity.node,
                slots=member.register.slots,
                capacity=member.register.capacity,
                speed=member.register.speed,
                loaded_epoch=member.loaded_epoch,
                loaded_epochs=tuple(member.register.loaded_epochs),
                # A draining instance serves on in the placement in force, and has no part in a new one.
                wanted=member.state != "draining",
                frozen=now < member.frozen_until,
            )
            for member in experts
        ]
