"""A cluster in a dozen lines, for the autoscaler's tests: step times by equation 1, Little's law, and noise."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field

from janus.core.scaling import Autoscaler, Counts, Decision, Observation, Reason, ScalingConfig

CONFIG = ScalingConfig(
    slo_tpot_s=0.1,
    low=Counts(attention=1, experts=1),
    high=Counts(attention=12, experts=12),
    interval_s=60.0,
    look_back_s=300.0,
)


@dataclass(kw_only=True)
class Plant:
    """Mean steady state of a cluster. ``noise``: relative, on everything that is observed."""

    counts: Counts = field(default_factory=lambda: Counts(attention=1, experts=1))
    fixed_s: float = 0.02
    #: Seconds per stream of one attention instance, and per activated expert of one expert instance.
    row_s: float = 0.001
    expert_s: float = 0.0004
    experts: int = 64
    streams_most: int = 64
    output_tokens: float = 100.0
    noise: float = 0.0
    seed: int = 0
    queued: float = 0.0

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    def step_s(self, counts: Counts, batch: float) -> float:
        activated = self.experts * (1 - math.pow(1 - 2 / self.experts, batch)) / counts.experts
        return self.fixed_s + self.row_s * batch / counts.attention + self.expert_s * activated

    def steady(self, arrivals_s: float) -> tuple[float, float]:
        """Streams that are wanted, and TPOT with those that have room."""
        room = float(self.counts.attention * self.streams_most)
        batch, before = 0.0, -1.0
        while abs(batch - before) > 1e-3 * batch:  # from below, so that the least of several states is found
            step = self.step_s(self.counts, min(room, max(1.0, batch)))
            before, batch = batch, min(4 * room, arrivals_s * self.output_tokens * step)
        return batch, self.step_s(self.counts, min(room, max(1.0, batch)))

    def observe(self, arrivals_s: float, window_s: float = 30.0, **other: object) -> Observation:
        batch, tpot = self.steady(arrivals_s)
        room = float(self.counts.attention * self.streams_most)
        running = min(batch, room)
        activated = self.experts * (1 - (1 - 2 / self.experts) ** max(1.0, running)) / self.counts.experts
        busy = running > 0
        tpot *= self._noisy()
        fields: dict[str, object] = {
            "window_s": window_s,
            "present": self.counts,
            "arrivals_s": arrivals_s * self._noisy(),
            "prompt_tokens": 50.0 if busy else 0.0,
            "output_tokens": self.output_tokens if busy else 0.0,
            "finished": round(arrivals_s * window_s),
            "output_tokens_s": min(arrivals_s * self.output_tokens, running / tpot),
            "tpot_mean_s": tpot if busy else None,
            "tpot_tail_s": 1.1 * tpot if busy else None,
            "tpot_samples": 100 if busy else 0,
            "running": running * self._noisy(),
            "queued": batch - running,
            "kv_usage": 0.3 * running / room,
            "streams_most": self.streams_most,
            "expert_share": self.expert_s * activated / tpot,
        }
        return Observation(**{**fields, **other})  # type: ignore[arg-type]

    def _noisy(self) -> float:
        return max(0.1, self.random.gauss(1.0, self.noise)) if self.noise else 1.0


@dataclass(kw_only=True)
class Run:
    """An autoscaler in charge of a plant; observations every ``every_s``."""

    plant: Plant
    scaler: Autoscaler
    every_s: float = 5.0
    now: float = 0.0
    changed_at: float = float("-inf")
    decisions: list[Decision] = field(default_factory=list)
    counts: list[Counts] = field(default_factory=list)

    @classmethod
    def of(cls, plant: Plant, config: ScalingConfig = CONFIG) -> Run:
        return cls(plant=plant, scaler=Autoscaler(config))

    def step(self, arrivals_s: float, **other: object) -> Decision:
        """One observation, and what comes of it, at once."""
        self.now += self.every_s
        window_s = min(30.0, self.now - self.changed_at)
        decision = self.scaler.observe(self.plant.observe(arrivals_s, window_s, **other), self.now)
        if decision.due:
            self.decisions.append(decision)
        if decision.changes:
            self.plant.counts = decision.wanted
            self.changed_at = self.now
        self.counts.append(self.plant.counts)
        return decision

    def hold(self, arrivals_s: float, seconds: float, **other: object) -> list[Decision]:
        """A constant load; returns the decisions made meanwhile."""
        before = len(self.decisions)
        for _ in range(round(seconds / self.every_s)):
            self.step(arrivals_s, **other)
        return self.decisions[before:]

    def changes(self) -> list[Decision]:
        return [decision for decision in self.decisions if decision.changes]

    def reasons(self) -> set[Reason]:
        return {decision.reason for decision in self.decisions}
