"""What the autoscaler is told, what it is held to, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from janus.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Numbers of attention and expert instances; 0 experts in a monolithic cluster."""

    attention: int
    experts: int

    @property
    def total(self) -> int:
        """Instances in all."""
        return self.attention + self.experts

    def covers(self, other: Counts) -> bool:
        """Whether there are at least as many of each role."""
        return self.attention >= other.attention and self.experts >= other.experts

    def at_least(self, other: Counts) -> Counts:
        """The larger number of each role."""
        return Counts(attention=max(self.attention, other.attention), experts=max(self.experts, other.experts))

    def at_most(self, other: Counts) -> Counts:
        """The smaller number of each role."""
        return Counts(attention=min(self.attention, other.attention), experts=min(self.experts, other.experts))

    def plus(self, *, attention: int = 0, experts: int = 0) -> Counts:
        """So many more."""
        return Counts(attention=self.attention + attention, experts=self.experts + experts)

    def __str__(self) -> str:
        return f"{self.attention}A{self.experts}E"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingConfig:
    """What the autoscaler is held to.

    Raises:
        ConfigError: values that contradict each other.
    """

    #: TPOT that clients should see, at this percentile over requests; 0 = their mean.
    slo_tpot_s: float
    percentile: float = 99.0
    #: TTFT at the same percentile; 0 = no such SLO.
    slo_ttft_s: float = 0.0
    low: Counts = Counts(attention=1, experts=1)
    high: Counts = Counts(attention=8, experts=8)
    #: Between two decisions, unless something is urgent; and between two that are urgent.
    interval_s: float = 60.0
    urgent_s: float = 5.0
    #: Instances are taken away when fewer would have been enough all this time, one per interval.
    look_back_s: float = 300.0
    #: What clients saw is judged once it covers so long after the last change.
    settle_s: float = 5.0
    #: Share of more load than observed that the cluster should bear within the SLO.
    headroom: float = 0.2
    #: Before any is taken away, fewer must bear this share of load beyond the headroom, and stay so far below the SLO.
    #: The load's is the larger: where the SLO is near the shortest step there is, TPOT hardly tells numbers apart.
    margin: float = 0.15
    slack: float = 0.05
    #: Shares of the KV cache, and of the streams that an instance takes, that are planned with.
    kv_usage: float = 0.9
    streams: float = 0.9
    #: Waiting streams per running one at which the queue is too long.
    queue: float = 0.1
    #: Requests whose TPOT is known, below which it says nothing about an SLO.
    samples: int = 8
    #: Pause after an operation that failed; doubled each time in a row, up to the second.
    backoff_s: float = 30.0
    backoff_most_s: float = 600.0

    def __post_init__(self) -> None:
        if not self.slo_tpot_s > 0:
            raise ConfigError("--slo-tpot", f"is {self.slo_tpot_s:g}", "give the TPOT to hold, e.g. 150ms")
        if not 0 <= self.percentile < 100:
            problem = f"{self.percentile:g} is no percentile"
            raise ConfigError("--slo-percentile", problem, "use 0 for the mean, or 50 to 99.9")
        for role, low, high in (
            ("attention", self.low.attention, self.high.attention),
            ("experts", self.low.experts, self.high.experts),
        ):
            if high < low:
                raise ConfigError(f"--max-{role}", f"{high} is below --min-{role} {low}", f"use at least {low}")
        if not 0 < self.interval_s <= self.look_back_s:
            problem = f"{self.look_back_s:g} s is shorter than the interval of {self.interval_s:g} s"
            raise ConfigError("--scale-look-back", problem, "use at least the interval")

    @property
    def tail(self) -> str:
        """The percentile in words: ``P99``, ``mean``."""
        return f"P{self.percentile:g}" if self.percentile else "mean"


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """A cluster over the last seconds. What clients saw is from ``window_s`` alone, and no older than the last change.

    Means over instances are over those that are ready. ``None``: nothing of the kind happened.
    """

    window_s: float
    #: Instances that the cluster is meant to have now.
    present: Counts
    #: Requests per second that arrived, those that were refused too; over a window that may be longer.
    arrivals_s: float = 0.0
    #: Mean tokens of the prompts that arrived and of the answers that ended; 0 = there were none.
    prompt_tokens: float = 0.0
    output_tokens: float = 0.0
    #: Requests that ended, those that were refused for want of capacity, and tokens per second that came out.
    finished: int = 0
    refused: int = 0
    output_tokens_s: float = 0.0
    #: TPOT over tokens, and at the SLO's percentile over requests; ``tpot_samples``: how many requests that says.
    tpot_mean_s: float | None = None
    tpot_tail_s: float | None = None
    tpot_samples: int = 0
    ttft_mean_s: float | None = None
    ttft_tail_s: float | None = None
    #: Streams that are being computed, and that wait to be; means over the window.
    running: float = 0.0
    queued: float = 0.0
    #: Of the fullest attention instance; and streams that one of them takes, 0 = not known.
    kv_usage: float = 0.0
    streams_most: int = 0
    #: Share of a step in which the attention instances wait for the experts.
    expert_share: float | None = None
    a_max: float | None = None
    #: Instances that join or leave now.
    starting: int = 0
    draining: int = 0
    #: Fewest expert instances that hold as many replicas of every expert as there have to be.
    least_experts: int = 0
    #: Why nothing should be concluded from this, in sentences: instances are missing, an operation runs, ...
    problems: tuple[str, ...] = ()


class Reason(StrEnum):
    """Why a decision is as it is."""

    #: Not the time to decide.
    NOT_DUE = "not-due"
    #: The numbers are right.
    STEADY = "steady"
    #: More are needed: the load will lead to more than the SLO; clients see more than it; streams wait or are refused.
    LOAD = "load"
    SLO = "slo"
    QUEUE = "queue"
    #: Fewer are enough, and have been for the whole look-back.
    SURPLUS = "surplus"
    #: The numbers were out of bounds.
    BOUNDS = "bounds"
    #: More are needed than the bounds allow, or more did not help lately.
    LIMIT = "limit"
    FUTILE = "futile"
    #: The observation says too little, or an operation has failed a moment ago.
    BLOCKED = "blocked"
    BACKOFF = "backoff"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What a model expects of numbers of instances under the load that is planned for."""

    counts: Counts
    #: TPOT in the mean and at the SLO's percentile; infinite where requests arrive faster than they can be served.
    tpot_mean_s: float
    tpot_tail_s: float
    #: Streams, over all attention instances.
    batch: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Wanted numbers, and why."""

    at: float
    reason: Reason
    #: The reason as a sentence, with the figures that it rests on.
    why: str
    present: Counts
    wanted: Counts
    #: Expected of ``wanted``, and of ``present``, under the load with headroom; ``None`` where no model was asked.
    predicted: Prediction | None = None
    predicted_present: Prediction | None = None
    #: "learned", or the profile's name; what its step times are multiplied by to meet those that were observed.
    model: str = ""
    correction: float = 1.0

    @property
    def due(self) -> bool:
        """Whether this is a decision at all, to be logged and kept."""
        return self.reason is not Reason.NOT_DUE

    @property
    def changes(self) -> bool:
        """Whether there is something to do."""
        return self.wanted != self.present
