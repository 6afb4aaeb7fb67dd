"""What is kept of a simulation: times of requests, counts, and instances over time."""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass

from janus.errors import RequestError


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a request ended: ``finished``, or the code of its error."""

    code: str

    @classmethod
    def of(cls, error: RequestError) -> Outcome:
        """The outcome of an error."""
        return cls(error.code)


@dataclass(slots=True)
class Window:
    """Sums since the last look; what a scaler is shown."""

    since_s: float = 0.0
    until_s: float = 0.0
    #: How many requests had finished when it began.
    first_request: int = 0
    arrivals: int = 0
    prompt_tokens: int = 0
    refused: int = 0
    output_tokens: int = 0
    #: Seconds between tokens of a request, and how many such pauses.
    pause_s: float = 0.0
    pauses: int = 0


@dataclass(frozen=True, slots=True)
class SizeChange:
    """A scaler wanted other numbers."""

    at_s: float
    attention: int
    experts: int
    why: str


@dataclass(frozen=True, slots=True)
class Struck:
    """A fault has struck these instances."""

    at_s: float
    instances: tuple[str, ...]


class Records:
    """Grows with what happens; arrays of doubles, eight bytes per figure."""

    def __init__(self) -> None:
        self.arrivals = 0
        self.ends = 0
        self.resumed = 0
        self.output_tokens = 0
        self.prompt_tokens = 0
        self.outcomes: Counter[str] = Counter()
        self.window = Window()
        self.sizes: list[SizeChange] = []
        self.faults: list[Struck] = []
        #: Of each request that finished: when it arrived, TTFT, TPOT (0 for a single token), tokens, when it ended.
        self.arrived_s = array("d")
        self.ttft_s = array("d")
        self.tpot_s = array("d")
        self.tokens_of = array("d")
        self.ended_s = array("d")

    def arrived(self, prompt: int) -> None:
        """A request has come."""
        self.arrivals += 1
        self.prompt_tokens += prompt
        self.window.arrivals += 1
        self.window.prompt_tokens += prompt

    def tokens(self, count: int, *, since_s: float, at_s: float) -> None:
        """``count`` tokens of a request have come out by ``at_s``; the ones before them at ``since_s``, -1 = none."""
        self.output_tokens += count
        window = self.window
        window.output_tokens += count
        if since_s >= 0:
            window.pause_s += at_s - since_s
            window.pauses += count
        else:
            window.pauses += count - 1

    def ended(
        self,
        outcome: Outcome,
        *,
        arrived_s: float,
        now: float,
        first_s: float = -1.0,
        last_s: float = -1.0,
        tokens: int = 0,
    ) -> None:
        """A request has ended."""
        self.ends += 1
        self.outcomes[outcome.code] += 1
        if outcome.code != "finished":
            self.window.refused += 1
            return
        self.arrived_s.append(arrived_s)
        self.ttft_s.append(first_s - arrived_s)
        self.tpot_s.append((last_s - first_s) / (tokens - 1) if tokens > 1 else 0.0)
        self.tokens_of.append(tokens)
        self.ended_s.append(now)
