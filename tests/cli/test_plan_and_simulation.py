"""What a plan predicts is what clients see in virtual time, where the batcher that serves decides."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from janus.core.planning.performance import Deployment
from janus.core.planning.steady import Traffic, steady_state
from janus.simulation.simulator import Simulation
from janus_cli.plan_options import RoutingOptions
from janus_cli.simulate import (
    AutoscaleOptions,
    ClusterOptions,
    LimitOptions,
    SimulateOptions,
    WorkloadOptions,
    cluster_of,
)


@dataclass(frozen=True, kw_only=True)
class Case:
    model: str
    hardware: str
    attention: int
    experts: int
    rate: float
    prompt: int
    output: int
    duration_s: float


TINY = Case(
    model=str(Path(__file__).parents[2] / "models" / "janus-tiny"),
    hardware="cpu-epyc",
    attention=1,
    experts=2,
    rate=4.0,
    prompt=30,
    output=60,
    duration_s=200.0,
)
LARGE = Case(
    model="DeepSeek-V2",
    hardware="h100-80gb",
    attention=4,
    experts=8,
    rate=5.0,
    prompt=160,
    output=256,
    duration_s=150.0,
)
CASES = {
    "one or two streams": TINY,
    "a handful": replace(TINY, rate=10.0, duration_s=100.0),
    "more than a hundred": LARGE,
    "long prompts and short answers": replace(LARGE, rate=2.0, prompt=2000, output=100, duration_s=250.0),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_plan_predicts_what_clients_see(case: Case) -> None:
    options = SimulateOptions(
        model=case.model,
        hardware=case.hardware,
        dtype="float32" if case.hardware == "cpu-epyc" else None,
        load=WorkloadOptions(
            workload=f"poisson:{case.rate},prompt={case.prompt},output={case.output},spread=0",
            duration_s=case.duration_s,
        ),
        cluster=ClusterOptions(attention=case.attention, experts=case.experts),
        limits=LimitOptions(max_running=256, max_queue=100_000),
        routing=RoutingOptions(draws=2),
        scaling=AutoscaleOptions(),
    )
    config = cluster_of(options)
    workload = options.load.read(seed=1, max_model_len=options.limits.max_model_len)
    seen = Simulation(config, workload, seed=1).run().as_json()
    deployment = Deployment(
        attention=case.attention,
        experts=case.experts,
        attention_device=config.attention_device,
        expert_device=config.expert_device,
    )
    traffic = Traffic(
        requests_s=len(workload) / workload.duration_s, prompt_tokens=case.prompt, output_tokens=case.output
    )
    predicted = steady_state(
        config.model, config.profile, deployment, traffic, a_max=config.a_max, most_streams=256.0 * case.attention
    )
    assert predicted.tpot_s == pytest.approx(seen["tpot_s"]["mean"], rel=0.06)
    assert predicted.tpot_tail_s == pytest.approx(seen["tpot_s"]["p99"], rel=0.12)
    assert predicted.ttft_s == pytest.approx(seen["ttft_s"]["mean"], rel=0.2)
