"""The same points, simulated with the profile of this machine."""

from __future__ import annotations

from benchmarks.simulator.observed import Observed, Seen

from janus.core.admission import AdmissionConfig
from janus.core.batcher_config import BatcherConfig
from janus.core.planning.hardware import HardwareProfile
from janus.simulation.config import ClusterConfig
from janus.simulation.report import Report
from janus.simulation.simulator import Simulation

#: As the services' options are by default.
BATCHER = BatcherConfig(
    max_running=64, token_budget=512, block_size=16, num_blocks=64 * 128, max_model_len=2048, max_waiting=1024
)
ADMISSION = AdmissionConfig(max_requests=256, max_tokens=262_144)


def config_of(observed: Observed, profile: HardwareProfile) -> ClusterConfig:
    """Return the cluster of ``observed`` as the simulator takes it: its slots, placement, routing and limits."""
    cluster, sizes = observed.cluster, observed.sizes
    return ClusterConfig(
        model=sizes,
        profile=profile,
        a_max=observed.a_max,
        attention=cluster.attention,
        experts=cluster.experts,
        slots=observed.a_max.slots,
        batcher=BATCHER,
        admission=ADMISSION,
        modes=("direct",),
    )


def simulated(observed: Observed, seen: Seen, profile: HardwareProfile) -> Report:
    """Return what the simulator says of a point."""
    return Simulation(config_of(observed, profile), seen.point.workload()).run()
