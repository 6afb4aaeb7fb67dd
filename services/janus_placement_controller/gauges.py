"""The cluster in numbers, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Gauge

from janus.messages.control import StatusReport


class ClusterGauges:
    """Brought up to date when somebody asks: the registry changes far more often."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"janus_cluster_{name}", text, registry=registry)

        self._members = gauge("members", "Instances registered and not failed")
        self._missing = gauge("missing", "Expected instances that are not there")
        self._epoch = gauge("epoch", "Placement epoch in force, 0 for none")
        self._view_version = gauge("view_version", "Version of the newest view")
        self._degraded = gauge("degraded", "Reasons why the cluster is not as it should be; 0 = all is well")
        self._replicas_least = gauge("replicas_least", "Replicas of the expert that has the fewest, over all layers")
        self._replicas = gauge("replicas", "Replicas in the placement in force, over all layers")
        self._move_seconds = gauge("move_seconds", "From issue to outcome of the last change of the placement")
        self._move_bytes = gauge("move_bytes", "Bytes that the last change of the placement loaded")

    def refresh(self, report: StatusReport) -> None:
        """Show ``report``."""
        view, counts = report.view, [count for layer in report.replicas for count in layer]
        self._members.set(sum(member.state != "failed" for member in view.members))
        self._missing.set(len(view.missing))
        self._epoch.set(view.placement.epoch if view.placement else 0)
        self._view_version.set(view.version)
        self._degraded.set(len(report.degraded))
        self._replicas_least.set(min(counts, default=0))
        self._replicas.set(sum(counts))
        if report.last_move is not None:
            self._move_seconds.set(report.last_move.seconds)
            self._move_bytes.set(report.last_move.bytes_read)
