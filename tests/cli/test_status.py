"""What `janus status` says, from reports as the controller gives them."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from janus.cluster.instances import Started
from janus.cluster.status import problems
from janus.messages.control import Failure, Heartbeat, Move, ScalingStatus, StatusReport
from janus_cli.placement_lines import placement_lines
from janus_cli.scaling_lines import scaling_lines
from tests.cli.cluster_fakes import report_of

EXPERT = Started(role="expert", name="expert-0", pid=1, port=2, ops_port=3, log=Path("/l"))


def report(**fields: object) -> StatusReport:
    found = msgspec.structs.replace(report_of([EXPERT]), heartbeats={"expert-0": Heartbeat(state="ready")})
    return msgspec.structs.replace(found, **fields)


def move(outcome: str, **fields: object) -> Move:
    return msgspec.structs.replace(Move(epoch=2, reason="join", outcome=outcome, replicas=48), **fields)


LOADED = move("in force", bytes_read=3 << 20, seconds=0.5, a_max_before=3.25, a_max_after=2.0)
LINES: list[tuple[dict[str, object], list[str]]] = [
    ({}, ["placement epoch: 1"]),
    (
        {"replicas": [[1, 2], [1, 1]]},
        ["placement epoch: 1", "replicas: 1 to 2 per expert, 1 spare, in 2 MoE layers of 2 experts"],
    ),
    (
        {"replicas": [[1, 1, 0]]},
        [
            "placement epoch: 1",
            "replicas: 0 to 1 per expert, 0 spare, in 1 MoE layers of 3 experts; 1 experts are nowhere",
        ],
    ),
    (
        {"last_move": move("loading")},
        ["placement epoch: 1; epoch 2 is loading", "last move: epoch 2 (join): loading 48 replicas"],
    ),
    (
        {"last_move": LOADED},
        [
            "placement epoch: 1",
            "last move: epoch 2 (join): in force after 0.50 s, 48 replicas, 3 MiB read; expected a_max 3.25 -> 2.00",
        ],
    ),
    (
        {"last_move": move("rolled back", problem="expert-0 has no memory")},
        [
            "placement epoch: 1",
            "last move: epoch 2 (join): rolled back after 0.00 s, 48 replicas, 0 MiB read; expert-0 has no memory",
        ],
    ),
    (
        {"last_failure": Failure(instance="expert-1", why="its link was lost", age_s=3.2)},
        ["placement epoch: 1", "last failure: expert-1, 3 s ago: its link was lost"],
    ),
    (
        {"heartbeats": {"attention-0": Heartbeat(state="ready", scheduler="aebs", proven_share=0.5)}},
        ["placement epoch: 1", "scheduler: aebs (50.0% of its choices proven the best possible)"],
    ),
]


@pytest.mark.parametrize(("fields", "lines"), LINES)
def test_what_is_known_is_a_line_each(fields: dict[str, object], lines: list[str]) -> None:
    assert list(placement_lines(report(**fields))) == lines


def test_epochs_that_are_still_in_use_are_said() -> None:
    found = report_of([EXPERT])
    assert found.view.placement is not None
    table = msgspec.structs.replace(found.view.placement, epoch=7)
    view = msgspec.structs.replace(found.view, placement=table, oldest_epoch=5)
    assert next(placement_lines(msgspec.structs.replace(found, view=view))) == (
        "placement epoch: 7; epoch 5 is still in use"
    )


def test_what_is_degraded_is_a_problem_and_nothing_is_said_twice() -> None:
    assert problems(report()) == []
    view = msgspec.structs.replace(report().view, missing=["expert-1"])
    reasons = ["expert-1 has not registered", "expert-1 is gone, and others serve its experts"]
    assert problems(report(view=view, degraded=reasons)) == reasons


def test_the_autoscaler_says_what_it_decided_last_and_what_went_wrong() -> None:
    assert list(scaling_lines(ScalingStatus(mode="on"))) == ["autoscaler: has not decided yet"]
    scaling = ScalingStatus(
        mode="dry-run",
        present="1A1E",
        wanted="2A1E",
        reason="queue",
        why="3 streams wait [at 2 requests/s]",
        age_s=4.4,
        operation="scaling 1A1E -> 2A1E",
        problem="no memory",
    )
    assert list(scaling_lines(scaling)) == [
        "autoscaler (dry run): 1A1E -> 2A1E, 4 s ago (queue): 3 streams wait \\[at 2 requests/s]",
        "autoscaler (dry run): scaling 1A1E -> 2A1E now",
        "[yellow]![/yellow] autoscaler (dry run): the last operation failed: no memory",
    ]
    steady = ScalingStatus(mode="on", present="1A1E", wanted="1A1E", reason="steady", why="all is well", age_s=60.0)
    assert list(scaling_lines(steady)) == ["autoscaler: 1A1E, 60 s ago (steady): all is well"]
