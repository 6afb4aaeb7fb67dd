"""How much faster than real time clusters of 64 to 1,000 instances are simulated."""

from __future__ import annotations

import time
from typing import Any

from janus.core.admission import AdmissionConfig
from janus.core.batcher_config import BatcherConfig
from janus.core.planning.activation import estimate, instance_grid
from janus.core.planning.catalog import named
from janus.core.planning.routing import synthetic_routing
from janus.profiles import load_profile
from janus.simulation.config import ClusterConfig
from janus.simulation.simulator import Simulation
from janus.simulation.workloads import Lengths, poisson

#: (attention, expert instances, requests per second): about what each serves within 200 ms per token.
SIZES = ((16, 48, 24.0), (64, 192, 80.0), (250, 750, 240.0))
_DURATION_S = 60.0
_LENGTHS = Lengths(prompt=512, output=256)


def measure(attention: int, experts: int, rate: float) -> dict[str, Any]:
    """Simulate one cluster of DeepSeek-V2 on H100s, and return how long a minute of it took."""
    model, profile, slots = named("DeepSeek-V2"), load_profile("h100-80gb"), 12
    table = estimate(
        synthetic_routing(model.experts, model.top_k, 4096, popularity=0.4),
        num_experts=model.experts,
        slots=slots,
        instances=instance_grid(-(-model.experts // slots), experts)[::4],
        batches=(1, 8, 64, 512, 4096),
        policy="eplb",
        draws=4,
    )
    config = ClusterConfig(
        model=model,
        profile=profile,
        a_max=table,
        attention=attention,
        experts=experts,
        slots=slots,
        batcher=BatcherConfig(
            max_running=128, token_budget=1024, block_size=16, num_blocks=16_384, max_model_len=8192, max_waiting=1024
        ),
        admission=AdmissionConfig(max_requests=100_000, max_tokens=10**9),
    )
    workload = poisson(rate, _DURATION_S, lengths=_LENGTHS, seed=1)
    begun = time.perf_counter()
    simulation = Simulation(config, workload)
    ready_s, cpu = time.perf_counter() - begun, time.process_time()
    marks: list[tuple[float, float]] = []
    simulation.agenda.at(_DURATION_S, lambda: marks.append((time.perf_counter(), time.process_time())))
    begun = time.perf_counter()
    report = simulation.run()
    # The quiet end, in which the last long answers come out, is no measure: only the time in which requests arrive.
    real_s, cpu_s = marks[0][0] - begun, marks[0][1] - cpu
    return {
        "instances": attention + experts,
        "attention": attention,
        "experts": experts,
        "rate": rate,
        "requests": report.requests,
        "output_tokens": report.output_tokens,
        "tpot_ms": round(1e3 * report.tpot_s.mean, 2),
        "virtual_s": _DURATION_S,
        "real_s": round(real_s, 2),
        "cpu_s": round(cpu_s, 2),
        "setup_s": round(ready_s, 2),
        "events": simulation.agenda.events,
        "virtual_per_real": round(_DURATION_S / real_s, 2),
        "virtual_per_cpu": round(_DURATION_S / cpu_s, 2),
    }
