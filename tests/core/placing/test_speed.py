"""Budgets of decisions that a controller makes, in CPU time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from janus.core.placement import static_placement
from janus.core.placing import POLICIES


def test_512_hosts_with_256_experts_in_4_layers_are_decided_in_a_second() -> None:
    """On one thread: matrix libraries spin on others while they wait, which is no work of ours."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    done = subprocess.run(
        [sys.executable, "-m", "tests.core.placing.decide"],
        cwd=Path(__file__).parents[3],
        env=os.environ | threads,
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    seconds = json.loads(done.stdout)
    assert set(seconds) == set(POLICIES)
    assert all(each["decision"] < 1.0 for each in seconds.values()), seconds
    assert all(each["slotting"] < 0.5 for each in seconds.values()), seconds


def test_planning_without_a_lost_instance_takes_less_than_2_ms() -> None:
    names = tuple(f"expert-{index}" for index in range(8))
    placement = static_placement(num_layers=8, num_experts=128, instances=names, slots_per_instance=32)
    seconds = []
    for name in names * 4:
        started = time.process_time()
        assert placement.without(frozenset({name})) is not None
        seconds.append(time.process_time() - started)
    assert min(seconds) < 2e-3
