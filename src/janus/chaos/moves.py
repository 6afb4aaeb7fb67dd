"""What the controller did about it: changes of the placement, and how evenly experts were activated around them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from janus.messages.control import Move, StatusReport


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """The placement at one moment: seconds of ``time.perf_counter``."""

    at: float
    move: Move | None
    #: Of the last step of each attention instance: a_max, mean over its MoE layers, mean over the instances.
    a_max: float | None
    #: The fewest replicas that an expert has in the placement in force; None where the controller does not say.
    least_replicas: int | None


def placed(report: StatusReport, at: float) -> Placed:
    """What a status report says of it."""
    steps = [list(beat.activated.values()) for beat in report.heartbeats.values() if beat.activated]
    means = [statistics.fmean(max(layer) for layer in zip(*counts, strict=True)) for counts in steps if counts[0]]
    return Placed(
        at=at,
        move=report.last_move,
        a_max=statistics.fmean(means) if means else None,
        least_replicas=min((min(row) for row in report.replicas if row), default=None),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Moves:
    """Changes of the placement after a fault, and a_max as attention instances measured it."""

    moves: list[Move]
    #: Means over what was seen before the fault, from it to the first new placement in force, and from then on.
    a_max_before: float | None
    a_max_between: float | None
    a_max_after: float | None
    least_replicas: int | None


def moves_after(seen: Sequence[Placed], fault_at: float) -> Moves:
    """Sum up what was seen, in order of time."""
    earlier = {_key(each.move) for each in seen if each.at <= fault_at and each.move is not None}
    later = [each for each in seen if each.at > fault_at]
    new = {_key(each.move): each.move for each in later if each.move is not None and _key(each.move) not in earlier}
    in_force = [key for key, move in new.items() if move.outcome == "in force"]
    moved_at = next((each.at for each in later if each.move and _key(each.move) in in_force), float("inf"))
    return Moves(
        moves=list(new.values()),
        a_max_before=_mean([each for each in seen if each.at <= fault_at]),
        a_max_between=_mean([each for each in later if each.at < moved_at]),
        a_max_after=_mean([each for each in later if each.at >= moved_at]),
        least_replicas=min((each.least_replicas for each in later if each.least_replicas is not None), default=None),
    )


def _key(move: Move) -> tuple[int, str]:
    return move.epoch, move.outcome


def _mean(seen: Sequence[Placed]) -> float | None:
    values = [each.a_max for each in seen if each.a_max is not None]
    return statistics.fmean(values) if values else None
