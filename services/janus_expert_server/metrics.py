"""The expert engine's counters in Prometheus's form, read when somebody asks: they cost the token path nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_HELP = {
    "waiting": "Dispatches in the queue",
    "loaded_epoch": "Placement epoch whose replicas are loaded",
    "dispatches": "Dispatches computed",
    "rows": "Activation rows computed",
    "groups": "Grouped computations; dispatches / groups = dispatches served by one read of the weights",
    "activated": "Activated experts, summed over grouped computations",
    "queued_ns": "Time that dispatches waited",
    "compute_ns": "Time computing experts",
    "reply_ns": "Time packing and posting answers",
    "rejected": "Dispatches rejected",
    "relayed": "Dispatches for the whole node that this instance shared with the others there",
    "replica_bytes": "Memory of the replicas that are held, in bytes",
    "loaded_from_disk": "Bytes of replicas read from the checkpoint",
    "loaded_from_peers": "Bytes of replicas fetched from other expert instances",
    "sent_to_peers": "Bytes of replicas sent to other expert instances",
    "forwarded": "Frames forwarded to other instances of the node, by reference where memory is shared",
}
_GAUGES = ("waiting", "loaded_epoch", "replica_bytes")


class EngineCollector(Collector):
    """Collects what ``report`` returns: ``ExpertEngine.report``."""

    def __init__(self, report: Callable[[], dict[str, int]]) -> None:
        self._report = report

    def collect(self) -> Iterable[Metric]:
        """One metric per counter; times become seconds."""
        for name, value in self._report().items():
            if name in _GAUGES:
                yield GaugeMetricFamily(f"janus_expert_{name}", _HELP[name], value=value)
            elif name.endswith("_ns"):
                yield CounterMetricFamily(f"janus_expert_{name[:-3]}_seconds", _HELP[name], value=value / 1e9)
            else:
                yield CounterMetricFamily(f"janus_expert_{name}", _HELP[name], value=value)
