"""Budgets of decisions that a controller makes, in CPU time; the best of a few runs, for others only add to it."""

from __future__ import annotations

import time

import numpy as np
import pytest

from janus.core.placement import static_placement
from janus.core.placing import POLICIES
from janus.core.placing.contract import PlacingRequest
from janus.core.placing.slotting import next_step
from tests.core.placing.drawn import routed
from tests.core.placing.test_policies import hosts


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_512_hosts_with_256_experts_in_4_layers_are_decided_in_a_second(name: str) -> None:
    activity = routed(np.random.default_rng(2), 4, 256, 8, tokens=2048)
    request = PlacingRequest(num_layers=4, num_experts=256, hosts=hosts(512, 256, nodes=64), activity=activity)
    seconds = []
    for _ in range(3):
        started = time.process_time()
        held = POLICIES[name](request)
        decided = time.process_time()
        step = next_step(
            epoch=1,
            num_experts=256,
            slots=8,
            hosts=[host.name for host in request.hosts],
            nodes=[host.node for host in request.hosts],
            target=held,
            current=None,
            in_use=[],
        )
        seconds.append((decided - started, time.process_time() - decided))
        assert step is not None
        assert step.complete
    decision, slotting = map(min, zip(*seconds, strict=True))
    assert decision < 1.0
    assert slotting < 0.5


def test_planning_without_a_lost_instance_takes_less_than_2_ms() -> None:
    names = tuple(f"expert-{index}" for index in range(8))
    placement = static_placement(num_layers=8, num_experts=128, instances=names, slots_per_instance=32)
    seconds = []
    for name in names * 4:
        started = time.process_time()
        assert placement.without(frozenset({name})) is not None
        seconds.append(time.process_time() - started)
    assert min(seconds) < 2e-3
