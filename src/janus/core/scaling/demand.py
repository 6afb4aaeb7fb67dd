"""The load that the autoscaler plans for, from what was observed."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, replace

from janus.core.scaling.contract import Observation

#: Answers after which an older mean length counts for half.
_MEMORY_REQUESTS = 64.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """Tokens that are wanted per second, and the lengths of their requests."""

    #: Output tokens per second: arrival rate times mean answer.
    tokens_s: float = 0.0
    requests_s: float = 0.0
    prompt_tokens: float = 0.0
    output_tokens: float = 0.0
    #: Share of one attention instance's KV cache that a stream takes, in the mean.
    kv_share: float = 0.0

    @property
    def context(self) -> float:
        """Mean tokens of context of a stream that decodes."""
        return self.prompt_tokens + self.output_tokens / 2

    @property
    def prefill_per_token(self) -> float:
        """Prompt tokens computed per output token."""
        return self.prompt_tokens * self.requests_s / self.tokens_s if self.tokens_s else 0.0

    def times(self, factor: float) -> Demand:
        """So many times as many requests."""
        return replace(self, tokens_s=self.tokens_s * factor, requests_s=self.requests_s * factor)

    def at_least(self, other: Demand) -> Demand:
        """The larger of each figure."""
        return Demand(
            tokens_s=max(self.tokens_s, other.tokens_s),
            requests_s=max(self.requests_s, other.requests_s),
            prompt_tokens=max(self.prompt_tokens, other.prompt_tokens),
            output_tokens=max(self.output_tokens, other.output_tokens),
            kv_share=max(self.kv_share, other.kv_share),
        )


class DemandHistory:
    """Turns observations into demands, and remembers them for the look-back."""

    def __init__(self, look_back_s: float) -> None:
        self._look_back_s = look_back_s
        self._prompt = self._output = self._kv_share = 0.0
        self._seen: deque[tuple[float, Demand]] = deque()
        self._since: float | None = None
        self.now = Demand()

    def add(self, seen: Observation, now: float) -> Demand:
        """Return the demand that ``seen`` amounts to."""
        requests = seen.arrivals_s * seen.window_s
        self._prompt = _mean(self._prompt, seen.prompt_tokens, requests)
        self._output = _mean(self._output, seen.output_tokens, seen.finished)
        if seen.running >= 1 and seen.present.attention:
            per_stream = seen.kv_usage * seen.present.attention / seen.running
            self._kv_share = _mean(self._kv_share, per_stream, seen.running)
        self.now = Demand(
            # What comes out is less than what is wanted when the cluster is overloaded, and more just after a burst.
            tokens_s=max(seen.arrivals_s * self._output, seen.output_tokens_s),
            requests_s=seen.arrivals_s,
            prompt_tokens=self._prompt,
            output_tokens=self._output,
            kv_share=self._kv_share,
        )
        if self._since is None or (self._seen and now - self._seen[-1][0] > self._look_back_s):
            self._since = now
        self._seen.append((now, self.now))
        while self._seen[0][0] < now - self._look_back_s:
            self._seen.popleft()
        return self.now

    def forget(self) -> None:
        """Begin the look-back anew."""
        self._seen.clear()
        self._since = None

    def covered_s(self, now: float) -> float:
        """Seconds that the look-back covers, at most all of it."""
        return 0.0 if self._since is None else min(self._look_back_s, now - self._since)

    @property
    def peak(self) -> Demand:
        """The largest of each figure in the look-back."""
        peak = Demand()
        for _, demand in self._seen:
            peak = peak.at_least(demand)
        return peak


def _mean(old: float, new: float, count: float) -> float:
    """``old`` moved towards ``new``, the mean of ``count`` requests."""
    if count <= 0 or new <= 0:
        return old
    if not old:
        return new
    share = 1 - math.exp2(-count / _MEMORY_REQUESTS)
    return old + share * (new - old)
