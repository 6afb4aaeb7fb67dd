"""The autoscaler's Prometheus metrics."""

from __future__ import annotations

import math

from prometheus_client import CollectorRegistry, Counter, Gauge

from janus.core.scaling import Counts, Decision, Observation, Reason


class ScalingMetrics:
    """Instruments, in the controller's registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"janus_autoscaler_{name}", text, labels, registry=registry)

        self._instances = gauge("instances", "Instances that have joined", "role")
        self._wanted = gauge("wanted_instances", "Instances that the last decision wants", "role")
        self._decisions = Counter("janus_autoscaler_decisions", "Decisions by reason", ["reason"], registry=registry)
        for reason in Reason:
            if reason is not Reason.NOT_DUE:
                self._decisions.labels(reason.value)
        self._failures = Counter("janus_autoscaler_failures", "Operations that failed", registry=registry)
        self._operating = gauge("operating", "1 while an operation runs")
        self._blocked = gauge("blocked", "1 while nothing is concluded from what is observed")
        self._tpot = gauge("tpot_seconds", "TPOT that clients saw lately", "of")
        self._predicted = gauge("predicted_tpot_seconds", "TPOT that the wanted instances are expected to give", "of")
        self._arrivals = gauge("arrivals_per_second", "Requests that arrive, those that are refused too")
        self._correction = gauge("correction", "What the model's step times are multiplied by to meet the observed")

    def observed(self, seen: Observation) -> None:
        """What was observed last."""
        self._blocked.set(bool(seen.problems))
        self._arrivals.set(seen.arrivals_s)
        for of, seconds in (("mean", seen.tpot_mean_s), ("tail", seen.tpot_tail_s)):
            self._tpot.labels(of).set(math.nan if seconds is None else seconds)

    def decided(self, decision: Decision) -> None:
        """What was decided."""
        self._decisions.labels(decision.reason.value).inc()
        self._wanted.labels("attention").set(decision.wanted.attention)
        self._wanted.labels("expert").set(decision.wanted.experts)
        self._correction.set(decision.correction)
        predicted = decision.predicted
        for of in ("mean", "tail"):
            seconds = math.nan if predicted is None else getattr(predicted, f"tpot_{of}_s")
            self._predicted.labels(of).set(seconds)

    def failed(self) -> None:
        """An operation failed."""
        self._failures.inc()

    def refresh(self, there: Counts, *, doing: bool) -> None:
        """What is there now."""
        self._instances.labels("attention").set(there.attention)
        self._instances.labels("expert").set(there.experts)
        self._operating.set(doing)
