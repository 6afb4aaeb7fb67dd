"""The instances that a cluster is started with, and what the controller keeps of each that has registered."""

from __future__ import annotations

import re

from janus.messages.control import Heartbeat, Identity, InstanceState, Member, Register, Role


def roster(*, attention: int, experts: int, gateways: int = 1) -> dict[str, Role]:
    """Return the instances of a cluster of this size, by name: ``attention-0``, ``expert-0``, ``gateway-0``..."""
    sizes: dict[Role, int] = {"gateway": gateways, "attention": attention, "expert": experts}
    return {f"{role}-{index}": role for role, size in sizes.items() for index in range(size)}


def natural_order(name: str) -> tuple[tuple[int, str], ...]:
    """Return a sort key by which ``expert-10`` follows ``expert-9``."""
    return tuple((int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name))


class MemberRecord:
    """One instance. Its wire form is built when its state changes, not for every view."""

    __slots__ = (
        "_message",
        "frozen_until",
        "heartbeat",
        "identity",
        "last_seen",
        "load_failures",
        "load_problem",
        "order",
        "register",
    )

    def __init__(self, identity: Identity, register: Register, *, last_seen: float) -> None:
        self.identity = identity
        self.register = register
        self.last_seen = last_seen
        self.heartbeat: Heartbeat | None = None
        self.order = natural_order(identity.instance)
        #: Expert instances: until when it gets no new replicas, how often in a row it could not load, and why.
        self.frozen_until = 0.0
        self.load_failures = 0
        self.load_problem = ""
        self.state = "joining"

    @property
    def loaded_epoch(self) -> int:
        """Expert instances: the newest epoch that it has said to have loaded."""
        beat = self.heartbeat
        return max(self.register.loaded_epoch, beat.loaded_epoch if beat is not None else 0)

    @property
    def message(self) -> Member:
        """The instance as views show it."""
        return self._message

    @property
    def state(self) -> InstanceState:
        """Its state as it reported, or as the controller found."""
        return self._message.state

    @state.setter
    def state(self, state: InstanceState) -> None:
        self._message = Member(
            role=self.identity.role,
            instance=self.identity.instance,
            node=self.identity.node,
            host=self.register.host,
            port=self.register.port,
            incarnation=self.identity.incarnation,
            state=state,
            slots=self.register.slots,
            ops_port=self.register.ops_port,
        )
