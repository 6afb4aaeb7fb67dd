"""Where an autoscaler is plugged in: it is asked at its interval, in virtual time, and answers with numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What the cluster did since the scaler was asked last. Rates are per second, times in seconds."""

    now: float
    #: Seconds that it is about.
    interval_s: float
    #: Requests that arrived, and their prompt tokens; those that were refused.
    arrivals: int
    prompt_tokens: int
    refused: int
    #: Requests that ended, and the output tokens of those.
    finished: int
    finished_tokens: int
    #: Output tokens of all requests.
    output_tokens: int
    #: Requests in steps, and waiting for one, now.
    running: int
    waiting: int
    #: Mean tokens of context of those that run, now.
    context: float
    #: Means and 99th percentiles over the tokens (TPOT) and over the first tokens (TTFT) of the interval; 0: there
    #: were none.
    tpot_s: float
    tpot_p99_s: float
    ttft_s: float
    ttft_p99_s: float
    #: Largest share of a KV cache in use, 0..1.
    kv_usage: float
    #: Instances that serve, and that were asked for last.
    attention: int
    experts: int
    wanted_attention: int
    wanted_experts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How many instances there should be."""

    attention: int
    experts: int
    #: Why, for the record.
    reason: str = ""


class Scaler(Protocol):
    """Decides how many instances there should be. Give one to ``Simulation``; one object serves one run."""

    @property
    def interval_s(self) -> float:
        """Seconds between two questions."""

    def decide(self, observation: Observation) -> Sizes | None:
        """Return what is wanted from now on; ``None`` = as it is."""
