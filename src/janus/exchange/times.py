"""Where the time of exchanges goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from janus.core.exchange_routes import Mode

#: Why a layer was sent again: an instance was lost, answered too late, refused, lacked a replica, or took no frame.
Resent: TypeAlias = Literal["lost", "late", "refused", "replica_missing", "not_posted"]
RESENT: tuple[Resent, ...] = ("lost", "late", "refused", "replica_missing", "not_posted")


@dataclass(slots=True)
class ExchangeTimes:
    """Where the time of exchanges went, summed since the start, in nanoseconds unless named otherwise."""

    dispatches: int = 0
    #: Frames posted to expert instances.
    frames: int = 0
    #: Frames handed in to other attention instances of the node.
    hand_ins: int = 0
    #: Dispatches of one or several instances of the node that this one posted for all.
    bundles: int = 0
    bytes_out: int = 0
    bytes_in: int = 0
    schedule_ns: int = 0
    pack_ns: int = 0
    #: The part of ``pack_ns`` in which frames were handed to their links.
    send_ns: int = 0
    #: From the last post of a dispatch until its last answer is in and the step goes on.
    wait_ns: int = 0
    #: The part of ``wait_ns`` that the slowest instance says it computed.
    expert_ns: int = 0
    combine_ns: int = 0
    #: In which bundles waited for other members.
    linger_ns: int = 0
    #: Dispatches by the way that was chosen, and what those took and were predicted to take, experts' work left out.
    direct: int = 0
    aggregated: int = 0
    two_phase: int = 0
    direct_ns: int = 0
    aggregated_ns: int = 0
    two_phase_ns: int = 0
    direct_predicted_ns: int = 0
    aggregated_predicted_ns: int = 0
    two_phase_predicted_ns: int = 0
    #: Dispatches that were followed by the next layer's of the same step, and after how long: what a way costs with all
    #: that it does to the node.
    direct_followed: int = 0
    aggregated_followed: int = 0
    two_phase_followed: int = 0
    direct_cadence_ns: int = 0
    aggregated_cadence_ns: int = 0
    two_phase_cadence_ns: int = 0
    #: Trials of another way that this instance has led, and those after which that one was taken.
    trials: int = 0
    changes: int = 0
    #: Distinct experts, and the most on one instance, summed over dispatches.
    activated: int = 0
    a_max: int = 0
    #: Dispatches whose scheduler looked whether its choice is the best possible, and those where it is.
    judged: int = 0
    proven: int = 0
    #: Shifts along augmenting paths.
    repairs: int = 0
    #: Layers that were sent again, by why.
    resent_lost: int = 0
    resent_late: int = 0
    resent_refused: int = 0
    resent_replica_missing: int = 0
    resent_not_posted: int = 0
    #: How often an instance was left out for some time, and answers that came after the layer had been sent again.
    suspected: int = 0
    late_answers: int = 0

    def resent(self, why: Resent) -> None:
        """Count a layer that is sent again."""
        field = f"resent_{why}"
        setattr(self, field, getattr(self, field) + 1)

    def chosen(self, mode: Mode, *, actual_ns: int, predicted_ns: int) -> None:
        """Count a dispatch that went ``mode``'s way."""
        if mode == "direct":
            self.direct += 1
            self.direct_ns += actual_ns
            self.direct_predicted_ns += predicted_ns
        elif mode == "aggregated":
            self.aggregated += 1
            self.aggregated_ns += actual_ns
            self.aggregated_predicted_ns += predicted_ns
        else:
            self.two_phase += 1
            self.two_phase_ns += actual_ns
            self.two_phase_predicted_ns += predicted_ns

    def followed(self, mode: Mode, *, after_ns: int) -> None:
        """Count a dispatch that went ``mode``'s way, and that the next layer's has followed."""
        if mode == "direct":
            self.direct_followed += 1
            self.direct_cadence_ns += after_ns
        elif mode == "aggregated":
            self.aggregated_followed += 1
            self.aggregated_cadence_ns += after_ns
        else:
            self.two_phase_followed += 1
            self.two_phase_cadence_ns += after_ns
