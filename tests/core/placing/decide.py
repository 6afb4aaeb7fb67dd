"""``python -m tests.core.placing.decide``: CPU seconds of a large decision and of its slotting, by policy, as JSON."""

from __future__ import annotations

import json
import time

import numpy as np

from janus.core.placing import POLICIES
from janus.core.placing.contract import PlacingPolicy, PlacingRequest
from janus.core.placing.slotting import next_step
from tests.core.placing.drawn import routed
from tests.core.placing.test_policies import hosts

HOSTS, EXPERTS, LAYERS, TOP_K = 512, 256, 4, 8


def main() -> None:
    """The best of three counts, for others only add to it."""
    activity = routed(np.random.default_rng(2), LAYERS, EXPERTS, TOP_K, tokens=2048)
    request = PlacingRequest(
        num_layers=LAYERS, num_experts=EXPERTS, hosts=hosts(HOSTS, EXPERTS, nodes=64), activity=activity
    )
    found = {}
    for name, policy in POLICIES.items():
        decisions, slottings = zip(*(_timed(policy, request) for _ in range(3)), strict=True)
        found[name] = {"decision": min(decisions), "slotting": min(slottings)}
    print(json.dumps(found))


def _timed(policy: PlacingPolicy, request: PlacingRequest) -> tuple[float, float]:
    started = time.process_time()
    held = policy(request)
    decided = time.process_time()
    step = next_step(
        epoch=1,
        num_experts=EXPERTS,
        slots=8,
        hosts=[host.name for host in request.hosts],
        nodes=[host.node for host in request.hosts],
        target=held,
        current=None,
        in_use=[],
    )
    assert step is not None
    assert step.complete
    return decided - started, time.process_time() - decided


if __name__ == "__main__":
    main()
