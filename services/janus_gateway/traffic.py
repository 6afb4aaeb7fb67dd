"""What clients ask for and see, summed up for the autoscaler: a few additions per token, a message per second."""

from __future__ import annotations

from janus.core.latency import LatencyHistogram
from janus.messages.control import Traffic

#: TPOT is taken over so many tokens of a sequence, and over what is left at its end: a long answer is heard of while it
#: runs, and one late token does not pass for a slow stream.
STRETCH_TOKENS = 32


class Stretch:
    """The tokens of one sequence since its last sample of TPOT."""

    __slots__ = ("since", "tokens")

    def __init__(self, now: float) -> None:
        self.since = now
        self.tokens = 0


class TrafficMeter:
    """Sums since the start. Times are of the loop's clock."""

    def __init__(self) -> None:
        self._arrived = self._refused = self._finished = 0
        self._prompt_tokens = self._answer_tokens = self._output_tokens = 0
        self._gaps_s = self._first_s = 0.0
        self._gaps = self._firsts = 0
        self._tpot, self._ttft = LatencyHistogram(), LatencyHistogram()

    def arrived(self, prompt_tokens: int) -> None:
        """A sequence was admitted."""
        self._arrived += 1
        self._prompt_tokens += prompt_tokens

    def refused(self) -> None:
        """A request was sent away for want of room."""
        self._arrived += 1
        self._refused += 1

    def first(self, tokens: int, ttft_s: float, now: float) -> Stretch:
        """The first tokens of a sequence are here; returns what its further ones are measured with."""
        self._output_tokens += tokens
        self._firsts += 1
        self._first_s += ttft_s
        self._ttft.add(ttft_s)
        return Stretch(now)

    def more(self, stretch: Stretch, tokens: int, gap_s: float, now: float) -> None:
        """Further tokens, ``gap_s`` after those before them."""
        self._output_tokens += tokens
        self._gaps += tokens
        self._gaps_s += gap_s
        stretch.tokens += tokens
        if stretch.tokens >= STRETCH_TOKENS:
            self._sample(stretch, now)

    def ended(self, stretch: Stretch | None, answer_tokens: int, last_token_at: float | None) -> None:
        """A sequence ended with an answer."""
        self._finished += 1
        self._answer_tokens += answer_tokens
        if stretch is not None and stretch.tokens and last_token_at is not None:
            self._sample(stretch, last_token_at)

    def report(self) -> Traffic:
        """The sums as a message."""
        return Traffic(
            arrived=self._arrived,
            refused=self._refused,
            finished=self._finished,
            prompt_tokens=self._prompt_tokens,
            answer_tokens=self._answer_tokens,
            output_tokens=self._output_tokens,
            gaps_s=self._gaps_s,
            gaps=self._gaps,
            first_s=self._first_s,
            firsts=self._firsts,
            tpot=self._tpot.pairs(),
            ttft=self._ttft.pairs(),
        )

    def _sample(self, stretch: Stretch, now: float) -> None:
        self._tpot.add((now - stretch.since) / stretch.tokens)
        stretch.since, stretch.tokens = now, 0
