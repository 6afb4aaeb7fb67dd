"""Clusters by what a scenario needs of them."""

from __future__ import annotations

from pathlib import Path

from janus.chaos.scenario import ClusterNeeds
from tests.e2e.cluster import Cluster, Spec

MODEL = Path(__file__).parents[2] / "models" / "janus-tiny"


class SharedClusters:
    """At most one runs at a time: more would only compete for the cores."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._needs: ClusterNeeds | None = None
        self._cluster: Cluster | None = None

    def name(self, needs: ClusterNeeds) -> str:
        """The name of a running cluster that is what ``needs`` describes."""
        if self._cluster is None or self._needs != needs or self._cluster.process.poll() is not None:
            assert not self.close()
            spec = Spec(
                model=MODEL,
                attention=needs.attention,
                experts=needs.experts,
                environment=tuple(needs.environment.items()),
                arguments=("--slots-per-instance", str(needs.slots_per_instance)),
            )
            self._cluster = Cluster.launch(spec, self.directory).wait_ready()
            self._needs = needs
        return "default"

    def log_tails(self) -> str:
        """What its instances said last."""
        return self._cluster.log_tails() if self._cluster else ""

    def close(self) -> list[str]:
        """End it; returns what was not as it should be."""
        cluster, self._cluster = self._cluster, None
        return cluster.close() if cluster else []
