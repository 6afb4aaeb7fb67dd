"""The ping-pong: every stack answers what it is asked, and the tables say what was measured."""

from __future__ import annotations

from typing import Any

import pytest
from benchmarks.transport.__main__ import measure
from benchmarks.transport.pingpong import STACKS
from benchmarks.transport.report import tables


@pytest.mark.parametrize("stacks", [STACKS[:4], ("ucxx-public", "wire-tcp", "link-shm")], ids=" ".join)
def test_every_stack_makes_its_round_trips(stacks: tuple[str, ...]) -> None:
    figures, others_cores = measure(stacks, (64, 300_000), rounds=2, loop="uvloop")
    assert others_cores >= 0
    assert [(each["stack"], each["bytes"]) for each in figures] == [(s, size) for size in (64, 300_000) for s in stacks]
    for each in figures:
        assert len(each["turns_us"]) == 2
        assert 1 < each["best_us"] <= each["trip_us"] and each["best_us"] <= each["p99_us"], each


def figure(stack: str, nbytes: int, turns_us: list[float]) -> dict[str, Any]:
    middle = sorted(turns_us)[len(turns_us) // 2]
    return {"stack": stack, "bytes": nbytes, "trip_us": middle, "best_us": min(turns_us), "turns_us": turns_us}


def test_links_are_compared_turn_by_turn_and_by_the_goal_of_their_size() -> None:
    result = {
        "command": "python -m benchmarks.transport",
        "commit": "abc",
        "date": "today",
        "hardware": {"cpu": "a processor", "cores": 2, "python": "3.11"},
        "loop": "uvloop",
        "others_cores": 0.25,
        "rounds": 3,
        "figures": [
            figure("link-ucx", 64, [40.0, 90.0, 41.0]),
            figure("ucxx", 64, [20.0, 65.0, 15.0]),
            figure("link-ucx", 64 << 10, [130.0, 400.0, 133.0]),
            figure("ucxx", 64 << 10, [100.0, 200.0, 100.0]),
            figure("ucxx-probe", 64, [20.0, 60.0, 20.5]),
            figure("ucxx-probe", 64 << 10, [125.0, 300.0, 133.0]),
        ],
    }
    text = tables(result)
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert ["64 B", "41 (40)", "20 (15)", "20 (20)"] in cells
    assert ["64 KiB", "133 (130)", "100 (100)", "133 (125)"] in cells
    assert ["64 B", "25", "2.00", "25", "2.67", "2.00", "30 us", "yes"] in cells
    assert ["64 KiB", "33", "1.33", "30", "1.30", "1.04", "1.3x", "no"] in cells
