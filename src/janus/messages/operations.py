"""Between tools and the placement-controller: the size that a cluster should have, and its state."""

from __future__ import annotations

import msgspec

from janus.messages.base import TaggedMessage
from janus.messages.membership import ClusterView, Heartbeat


class SetExpected(TaggedMessage, frozen=True, tag="set_expected"):
    """Tool -> controller: how many instances of each role the cluster should have from now on.

    Answered with ``ClusterView``. Those beyond the number may leave without being missed.
    """

    gateways: int
    attention: int
    experts: int


class Move(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The last change of the placement, as ``janus status`` shows it."""

    epoch: int
    #: Why: "start", "join", "leave", "death", "balance".
    reason: str
    #: "loading", "in force", "rolled back".
    outcome: str
    #: Replicas that were to be loaded, bytes that were, and seconds from issue to outcome.
    replicas: int
    bytes_read: int = 0
    seconds: float = 0.0
    problem: str = ""
    #: What the policy expected of it: mean a_max per layer before and after; 0 = it did not look.
    a_max_before: float = 0.0
    a_max_after: float = 0.0


class Failure(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The last instance that failed."""

    instance: str
    why: str
    #: Seconds ago.
    age_s: float


class StatusRequest(TaggedMessage, frozen=True, tag="status_request"):
    """Tool -> controller: everything that ``janus status`` shows."""


class ScalingStatus(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the autoscaler does, as ``janus status`` shows it."""

    #: "dry-run" or "on".
    mode: str
    #: The last decision: numbers before and after as "2A4E", why, and seconds ago. Empty before the first one.
    present: str = ""
    wanted: str = ""
    reason: str = ""
    why: str = ""
    age_s: float = 0.0
    #: What is being done now; empty when nothing is.
    operation: str = ""
    #: Why the last operation failed; empty when it did not.
    problem: str = ""


class StatusReport(TaggedMessage, frozen=True, tag="status_report"):
    """Controller -> tool. ``heartbeats``: the last one of each instance, with its age in seconds."""

    view: ClusterView
    heartbeats: dict[str, Heartbeat]
    heartbeat_age_s: dict[str, float]
    started_s: float
    last_move: Move | None = None
    last_failure: Failure | None = None
    #: Why the cluster is not as it should be, one sentence per cause; empty when all is well.
    degraded: list[str] = msgspec.field(default_factory=list)
    #: ``replicas[layer][expert]`` of the placement in force.
    replicas: list[list[int]] = msgspec.field(default_factory=list)
    #: ``None`` where nothing scales by itself.
    scaling: ScalingStatus | None = None
