"""What arrives at a cluster in the long run."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from janus.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Requests that arrive, in the long run.

    Raises:
        ConfigError: numbers that no traffic has.
    """

    #: Per second.
    requests_s: float
    #: Mean tokens of a prompt, and of an answer.
    prompt_tokens: float
    output_tokens: float
    #: Coefficient of variation of the times between arrivals (1 = Poisson, more = bursts), and of the answers' lengths.
    arrival_cv: float = 1.0
    output_cv: float = 0.0

    def __post_init__(self) -> None:
        for name, least in (("requests_s", 0), ("prompt_tokens", 0), ("output_tokens", 1)):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= least):
                raise ConfigError(name, f"is {value:g}", f"give a finite number, at least {least}")
        for name in ("arrival_cv", "output_cv"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(name, f"is {value:g}", "give 0 or more")

    @property
    def tokens_s(self) -> float:
        """Output tokens per second, D."""
        return self.requests_s * self.output_tokens

    @property
    def context(self) -> float:
        """Mean tokens of context of a stream that decodes: longer answers are seen for longer."""
        return self.prompt_tokens + self.output_tokens * (1 + self.output_cv**2) / 2

    @property
    def longest(self) -> float:
        """Context at the end of a mean answer."""
        return self.prompt_tokens + self.output_tokens

    def times(self, factor: float) -> Traffic:
        """Return the traffic at ``factor`` times the rate."""
        return replace(self, requests_s=self.requests_s * factor)
