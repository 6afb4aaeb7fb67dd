"""What arrives: public traces and synthetic processes, as arrays."""

from janus.simulation.workloads.closed import ClosedLoop
from janus.simulation.workloads.files import read_trace
from janus.simulation.workloads.spec import workload_of
from janus.simulation.workloads.synthetic import Lengths, bursty, constant, diurnal, gamma, poisson
from janus.simulation.workloads.workload import Workload

__all__ = [
    "ClosedLoop",
    "Lengths",
    "Workload",
    "bursty",
    "constant",
    "diurnal",
    "gamma",
    "poisson",
    "read_trace",
    "workload_of",
]
