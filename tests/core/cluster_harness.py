"""Short ways to write what happens to a cluster, and a reader of its actions that refuses unsafe ones."""

from __future__ import annotations

from janus.core.membership import Membership, ModelShape, roster
from janus.core.membership_events import (
    Action,
    HeartbeatSeen,
    LinkLost,
    Log,
    PlacementLoadedSeen,
    Registered,
    SendLoad,
    SendView,
)
from janus.core.placement import EMPTY, Placement
from janus.messages.control import (
    ClusterView,
    Heartbeat,
    Identity,
    InstanceState,
    PlacementLoaded,
    Register,
    Role,
)

SHAPE = ModelShape(num_layers=2, num_experts=4)


def role_of(name: str) -> Role:
    return next(role for role in ("gateway", "attention", "expert") if name.startswith(role))


def cluster(*, attention: int = 1, experts: int = 2, now: float = 0.0, first_version: int = 1) -> Membership:
    return Membership(
        shape=SHAPE,
        expected=roster(attention=attention, experts=experts),
        heartbeat_s=1.0,
        now=now,
        first_version=first_version,
    )


def registered(
    name: str,
    *,
    incarnation: str = "i1",
    now: float = 0.0,
    slots: int = 0,
    loaded_epoch: int = 0,
    role: Role | None = None,
) -> Registered:
    identity = Identity(protocol=1, role=role or role_of(name), instance=name, node="node", incarnation=incarnation)
    register = Register(host="10.0.0.1", port=9, pid=77, slots=slots, loaded_epoch=loaded_epoch)
    return Registered(identity=identity, register=register, now=now)


def beat(
    name: str,
    *,
    state: InstanceState = "ready",
    now: float = 0.0,
    loaded_epoch: int = 0,
    incarnation: str = "",
    reason: str = "",
    oldest_epoch: int = 0,
    suspects: tuple[str, ...] = (),
) -> HeartbeatSeen:
    heartbeat = Heartbeat(
        state=state, loaded_epoch=loaded_epoch, reason=reason, oldest_epoch=oldest_epoch, suspects=list(suspects)
    )
    return HeartbeatSeen(instance=name, heartbeat=heartbeat, now=now, incarnation=incarnation)


def loaded(name: str, epoch: int, *, error: str = "", incarnation: str = "", now: float = 0.0) -> PlacementLoadedSeen:
    message = PlacementLoaded(epoch=epoch, replicas=1, bytes_read=1, seconds=0.1, error=error)
    return PlacementLoadedSeen(instance=name, message=message, now=now, incarnation=incarnation)


def lost(name: str, *, incarnation: str = "", now: float = 0.0) -> LinkLost:
    return LinkLost(instance=name, incarnation=incarnation, now=now)


def started(*, attention: int = 1, experts: int = 2, slots: int = 0) -> Membership:
    """A cluster of which everybody is there and ready, with epoch 1 in force."""
    membership = cluster(attention=attention, experts=experts)
    for name in membership.missing:
        membership.handle(registered(name, slots=slots if role_of(name) == "expert" else 0))
        membership.handle(beat(name))
    for index in range(experts):
        membership.handle(loaded(f"expert-{index}", 1))
    assert membership.view.placement is not None
    return membership


def the_view(actions: list[Action]) -> ClusterView:
    """The newest view among ``actions``."""
    return [action.view for action in actions if isinstance(action, SendView)][-1]


def epoch_of(view: ClusterView) -> int | None:
    return None if view.placement is None else view.placement.epoch


def loads(actions: list[Action]) -> list[tuple[str, int]]:
    return [(action.instance, action.table.epoch) for action in actions if isinstance(action, SendLoad)]


def logged(actions: list[Action]) -> list[str]:
    return [action.event for action in actions if isinstance(action, Log)]


def kinds(actions: list[Action]) -> list[str]:
    """Names of the actions, without the log events."""
    return [type(action).__name__ for action in actions if not isinstance(action, Log)]


def check_view(view: ClusterView) -> None:
    """What holds for every view: who is missing is not there, and those who are have every expert of the placement."""
    present = {member.instance for member in view.members if member.state != "failed"}
    assert not present & set(view.missing)
    assert len({member.instance for member in view.members}) == len(view.members)
    if view.placement is not None:
        placement = Placement.from_table(view.placement)
        gone = frozenset(placement.instances) - present
        assert not gone or placement.without(gone) is not None
        assert (placement.num_layers, placement.num_experts) == (SHAPE.num_layers, SHAPE.num_experts)
        assert any(slot != EMPTY for layer in placement.slots for held in layer for slot in held)
