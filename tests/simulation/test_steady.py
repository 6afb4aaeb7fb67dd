"""In the long run the simulator settles where the planner's formula says: two ways to the same fixed point."""

from __future__ import annotations

import pytest

from janus.core.planning.steady import SteadyState, Traffic, steady_state
from janus.simulation.report import Report
from janus.simulation.simulator import Simulation
from janus.simulation.workloads import Lengths, constant, poisson
from tests.simulation.clusters import MODEL, PROFILE, a_max, cluster

PROMPT, OUTPUT, ATTENTION = 32, 64, 2
LENGTHS = Lengths(prompt=PROMPT, output=OUTPUT, spread=0)
CONFIG = cluster(ATTENTION)


def formula(rate: float) -> SteadyState:
    return steady_state(
        MODEL,
        PROFILE,
        CONFIG.deployment(ATTENTION, CONFIG.experts),
        Traffic(requests_s=rate, prompt_tokens=PROMPT, output_tokens=OUTPUT),
        a_max=a_max,
        most_streams=32 * ATTENTION,
        token_budget=CONFIG.batcher.token_budget,
    )


@pytest.mark.parametrize(("rate", "seconds"), [(4.0, 120), (16.0, 60), (40.0, 40)])
def test_random_arrivals_settle_where_the_formula_says(rate: float, seconds: float) -> None:
    workload = poisson(rate, seconds, lengths=LENGTHS, seed=4)
    report, state = Simulation(CONFIG, workload).run(), formula(workload.rate)
    assert report.tpot_s.mean == pytest.approx(state.tpot_s, rel=0.06)
    assert report.in_flight == pytest.approx(_in_flight(report, state, workload.rate), rel=0.1)


def test_arrivals_at_equal_distances_meet_fewer_others() -> None:
    """The formula is for random arrivals, of which one meets all that are there in the mean, and itself besides."""
    workload = constant(16.0, 40, lengths=LENGTHS)
    report, state = Simulation(CONFIG, workload).run(), formula(16.0)
    assert 0.85 * state.tpot_s < report.tpot_s.mean < state.tpot_s
    assert report.in_flight < state.batch


def _in_flight(report: Report, state: SteadyState, rate: float) -> float:
    """Little's law over prompt and answer; while its prompt waits and is computed a request is in flight too."""
    return rate * (report.ttft_s.mean + (OUTPUT - 1) * state.tpot_s)
