"""In the long run the simulator settles where the planner's formula says: two ways to the same fixed point."""

from __future__ import annotations

import pytest

from janus.core.planning.steady import Traffic, steady_state
from janus.simulation.simulator import Simulation
from janus.simulation.workloads import Lengths, Workload, constant, poisson
from tests.simulation.clusters import MODEL, PROFILE, a_max, cluster

LENGTHS = Lengths(prompt=32, output=64, spread=0)


def settled(workload: Workload, *, attention: int = 2) -> tuple[float, float, float, float]:
    """Simulated TPOT and streams, and the formula's."""
    config = cluster(attention)
    simulation = Simulation(config, workload)
    report = simulation.run()
    state = steady_state(
        MODEL,
        PROFILE,
        config.deployment(attention, 4),
        Traffic(requests_s=workload.rate, prompt_tokens=32, output_tokens=64),
        a_max=a_max,
        most_streams=32 * attention,
        token_budget=128,
    )
    return report.tpot_s.mean, report.in_flight, state.tpot_s, state.batch


@pytest.mark.parametrize("rate", [4.0, 16.0, 40.0])
def test_a_constant_load_settles_at_the_fixed_point(rate: float) -> None:
    tpot_s, in_flight, expected_s, batch = settled(constant(rate, 40, lengths=LENGTHS))
    assert tpot_s == pytest.approx(expected_s, rel=0.05)
    # Those whose prompt is computed are in flight too.
    assert in_flight == pytest.approx(batch, rel=0.1)


def test_random_arrivals_settle_nearby() -> None:
    tpot_s, _, expected_s, _ = settled(poisson(16, 60, lengths=LENGTHS, seed=4))
    assert tpot_s == pytest.approx(expected_s, rel=0.08)
