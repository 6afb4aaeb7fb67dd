"""The operating points at which real and simulated clusters are compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from janus.simulation.workloads import ClosedLoop, Lengths, Workload, poisson

#: ``tiny`` is the bundled checkpoint; ``large`` has random weights, of hundreds of megabytes.
ModelName = Literal["tiny", "large"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """What is started."""

    model: ModelName
    attention: int
    experts: int

    @property
    def name(self) -> str:
        """It in words."""
        return f"{self.model} {self.attention}A{self.experts}E"


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One load on one cluster: ``streams`` clients that wait for their answers, or ``rate`` requests per second."""

    cluster: Cluster
    prompt: int
    output: int
    streams: int = 0
    #: Requests per stream.
    rounds: int = 1
    rate: float = 0.0
    duration_s: float = 0.0
    seed: int = 1

    @property
    def name(self) -> str:
        """It in words."""
        load = f"{self.streams} streams" if self.streams else f"{self.rate:g}/s"
        return f"{self.cluster.name} {load} {self.prompt}+{self.output}"

    def workload(self) -> Workload | ClosedLoop:
        """What arrives, the same for both."""
        if self.streams:
            return ClosedLoop(
                streams=self.streams, requests=self.streams * self.rounds, prompt=self.prompt, output=self.output
            )
        lengths = Lengths(prompt=self.prompt, output=self.output, spread=0.4)
        drawn = poisson(self.rate, self.duration_s, lengths=lengths, seed=self.seed)
        return drawn.within(_LONGEST)

    def arrivals(self) -> list[tuple[float, int, int]]:
        """``(seconds, prompt, output)`` of each request of an open workload."""
        workload = self.workload()
        assert isinstance(workload, Workload)
        return list(
            zip(np.asarray(workload.at_s).tolist(), workload.prompt.tolist(), workload.output.tolist(), strict=True)
        )


#: The bundled model's context.
_LONGEST = 480


def _cluster(model: ModelName, attention: int, experts: int) -> Cluster:
    return Cluster(model=model, attention=attention, experts=experts)


POINTS: tuple[Point, ...] = (
    Point(cluster=_cluster("large", 1, 1), streams=4, prompt=32, output=96, rounds=2),
    Point(cluster=_cluster("large", 1, 1), streams=16, prompt=64, output=64, rounds=2),
    Point(cluster=_cluster("large", 1, 2), streams=1, prompt=16, output=96, rounds=3),
    Point(cluster=_cluster("large", 1, 2), streams=8, prompt=64, output=96, rounds=2),
    Point(cluster=_cluster("large", 1, 2), streams=32, prompt=128, output=64, rounds=2),
    Point(cluster=_cluster("large", 1, 2), rate=2.0, duration_s=8.0, prompt=64, output=64),
    Point(cluster=_cluster("large", 2, 2), streams=8, prompt=64, output=96, rounds=2),
    Point(cluster=_cluster("large", 2, 2), streams=32, prompt=32, output=64, rounds=2),
    Point(cluster=_cluster("large", 2, 2), rate=2.0, duration_s=8.0, prompt=64, output=64),
    Point(cluster=_cluster("large", 1, 3), streams=16, prompt=32, output=96, rounds=2),
    Point(cluster=_cluster("tiny", 1, 2), streams=4, prompt=32, output=128, rounds=4),
    Point(cluster=_cluster("tiny", 1, 2), streams=32, prompt=64, output=128, rounds=3),
    Point(cluster=_cluster("tiny", 2, 2), streams=16, prompt=32, output=128, rounds=3),
    Point(cluster=_cluster("tiny", 2, 3), streams=48, prompt=64, output=128, rounds=2),
)
