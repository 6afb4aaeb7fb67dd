"""What happens to the controller's membership (events), and what it wants done (actions)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from janus.core.placing.contract import Held, PlacingRequest
from janus.messages.control import ClusterView, Heartbeat, Identity, PlacementLoaded, PlacementTable, Register

# -- events --------------------------------------------------------------------------------------------------------
# ``incarnation`` says which process start of an instance an event is about; events about an earlier one are ignored.
# Empty stands for the one that is registered. ``now`` is in seconds of any monotonic clock.


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered:
    """An instance offers itself over a link whose handshake has proved ``identity``."""

    identity: Identity
    register: Register
    now: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HeartbeatSeen:
    """An instance reports its state."""

    instance: str
    heartbeat: Heartbeat
    now: float
    incarnation: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkLost:
    """The link over which the instance registered last is gone. A link that was replaced since is not reported."""

    instance: str
    now: float
    incarnation: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaveSeen:
    """An instance drains and will close its link when it has finished."""

    instance: str
    reason: str
    now: float
    incarnation: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementLoadedSeen:
    """An expert instance has loaded, or could not load, its replicas of an epoch."""

    instance: str
    message: PlacementLoaded
    now: float
    incarnation: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedSet:
    """How many instances of each role there should be from now on."""

    gateways: int
    attention: int
    experts: int
    now: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TargetProposed:
    """A policy's answer to ``Membership.placing_request``, worth the move."""

    request: PlacingRequest
    held: Held
    now: float
    #: Mean a_max per layer that is expected before and after.
    a_max: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """Time has passed; sent a few times per heartbeat interval."""

    now: float


Event: TypeAlias = (
    Registered | HeartbeatSeen | LinkLost | LeaveSeen | PlacementLoadedSeen | ExpectedSet | TargetProposed | Tick
)

# -- actions -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class SendRegistered:
    """Answer a registration: heartbeats are due every ``heartbeat_s`` seconds."""

    instance: str
    heartbeat_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SendView:
    """Send ``view`` to every registered instance. A later one replaces an earlier one that is still queued."""

    view: ClusterView
    to: Literal["all"] = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class SendLoad:
    """Ask an expert instance to load its slots of ``table`` and report."""

    instance: str
    table: PlacementTable


@dataclass(frozen=True, slots=True, kw_only=True)
class RefuseDuplicate:
    """Refuse the process ``incarnation`` (``Fatal`` with ``problem``): a live one has the name ``instance``."""

    instance: str
    incarnation: str
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SendFatal:
    """Tell a process that it cannot be part of this cluster, and why."""

    instance: str
    incarnation: str
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MarkFailed:
    """Close the link to ``instance``; it may register anew."""

    instance: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """Write one log event."""

    level: Literal["info", "warning", "error"]
    event: str
    fields: dict[str, object] = field(default_factory=dict)


Action: TypeAlias = SendRegistered | SendView | SendLoad | RefuseDuplicate | SendFatal | MarkFailed | Log
