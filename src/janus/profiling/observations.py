"""What was measured at one operating point, and what a profile predicts for it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from janus.core.planning.hardware import HardwareProfile
from janus.core.planning.performance import Deployment, Load, StepTime, step_time
from janus.core.planning.sizes import ModelSizes
from janus.profiling.cores import Turn

#: The parts of a step, as ``StepTime`` has them.
PARTS = ("attention_s", "exchange_s", "experts_s", "other_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """One operating point. Times are seconds per step, of the median window.

    attention_s     the layers' attention and gate, as the attention instance timed them
    experts_s       what the slowest expert instance of each dispatch said that it computed
    exchange_s      from dispatch to combine, less that: scheduling, packing, wires, wake-ups, queues
    other_s         everything else of the time between two steps: embedding, output matrix, sampling, publishing
    """

    model: ModelSizes
    attention: int
    experts: int
    load: Load
    #: Distinct experts on the busiest instance, mean over dispatches.
    a_max: float
    attention_s: float
    exchange_s: float
    experts_s: float
    other_s: float
    #: Shortest and longest step time among the windows.
    low_s: float
    high_s: float
    #: Cores that processes other than the cluster's kept busy meanwhile.
    others_cores: float = 0.0

    @property
    def total_s(self) -> float:
        """The step: with streams that decode, their TPOT."""
        return self.attention_s + self.exchange_s + self.experts_s + self.other_s

    def predicted(self, profile: HardwareProfile) -> StepTime:
        """Return what ``profile`` says that it takes, by the planner's own model."""
        device = profile.device()
        deployment = Deployment(
            attention=self.attention, experts=self.experts, attention_device=device, expert_device=device
        )
        # What was measured went directly, and one step at a time.
        return step_time(
            self.model, profile, deployment, self.load, a_max=lambda _experts, _batch: self.a_max, modes=("direct",)
        )


def undisturbed(parts: Mapping[str, float], *, attention: Turn, experts: Sequence[Turn]) -> dict[str, float]:
    """Return ``parts`` as they would have been, had nobody else used the cores.

    ``attention`` and ``experts``: how long the instances ran and waited because of others, in the steps of ``parts``.
    They take turns, so a step is shorter by both waits; of several expert instances the one that waited most counts.
    What is computed shrinks as its process's share of running does, and the exchange by the rest. At most half of the
    step, and of a part, is taken out: what remained of more would be the difference of two large numbers.
    """
    steps = max(parts["steps"], 1.0)
    slowest = max(experts, key=lambda turn: turn.waited_s, default=Turn())
    whole = sum(parts[part] for part in PARTS)
    total = whole - min((attention.waited_s + slowest.waited_s) / steps, whole / 2)
    shrunk = {
        "attention_s": parts["attention_s"] * _share(attention),
        "experts_s": parts["experts_s"] * _share(slowest),
        "other_s": parts["other_s"] * _share(attention),
    }
    return {**parts, **shrunk, "exchange_s": max(parts["exchange_s"] / 2, total - sum(shrunk.values()))}


def _share(turn: Turn) -> float:
    return max(0.5, turn.ran_s / (turn.ran_s + turn.waited_s)) if turn.waited_s > 0 else 1.0


def per_step(
    before: Mapping[str, Mapping[str, float]],
    after: Mapping[str, Mapping[str, float]],
    *,
    moe_layers: int,
    wall_s: float | None,
) -> dict[str, float]:
    """Return the parts of a step, ``a_max`` and ``steps`` between two looks at the counters of attention instances.

    ``before`` and ``after``: by instance, the fields of ``StepTimes`` and, prefixed with ``exchange.``, those of
    ``ExchangeTimes``. ``wall_s``: time between the looks, all of which belongs to steps; ``None`` = only what the steps
    say that they took, because there were pauses. Empty when there was no step.
    """
    grown: dict[str, float] = {}
    for name, counters in after.items():
        for field, value in counters.items():
            grown[field] = grown.get(field, 0.0) + value - before[name].get(field, 0.0)
    steps, instances = grown.get("steps", 0.0), len(after)
    if not steps:
        return {}
    dispatches = max(grown.get("exchange.dispatches", 0.0), 1.0)
    seconds = {field: value / steps / 1e9 for field, value in grown.items() if field.endswith("_ns")}
    attention = seconds["attention_ns"] + seconds["gate_ns"]
    # Per dispatch and layer, since steps that were in flight at either look have dispatched only a part.
    experts = grown.get("exchange.expert_ns", 0.0) / dispatches * moe_layers / 1e9
    moe = seconds["dispatch_ns"] + seconds["combine_ns"]
    total = seconds["total_ns"] if wall_s is None else wall_s * instances / steps
    return {
        "attention_s": attention,
        "exchange_s": max(0.0, moe - experts),
        "experts_s": experts,
        "other_s": max(0.0, total - attention - moe),
        "a_max": grown.get("exchange.a_max", 0.0) / dispatches,
        "steps": steps / instances,
        "tokens": grown.get("tokens", 0.0),
    }
