"""What is sent: N requests at once, short random prompts of token ids, a fixed number of greedy output tokens."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One cell of the benchmark is this workload at one concurrency."""

    prompt_tokens: int = 16
    output_tokens: int = 64
    #: Prompt ids are drawn from ``[1, vocab_size)``.
    vocab_size: int

    def prompts(self, count: int, seed: int) -> list[list[int]]:
        """Return ``count`` prompts; no two seeds share one, so that no prefix cache is measured."""
        draw = random.Random(seed)
        return [[draw.randrange(1, self.vocab_size) for _ in range(self.prompt_tokens)] for _ in range(count)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What one engine did with one batch of requests. Times in seconds."""

    #: From the first request sent to the last token received.
    wall_s: float
    output_tokens: int
    #: Mean over the requests; time per output token after the first.
    tpot_s: float
    #: Median over the requests.
    ttft_s: float
    #: CPU time of the load client; 0 for engines that are not behind HTTP.
    client_cpu_s: float = 0.0
    #: ``{instance: what its /status said}``, before and after the decode phase, where that was asked for.
    before: dict[str, dict[str, dict[str, int]]] | None = None
    after: dict[str, dict[str, dict[str, int]]] | None = None
    #: Time between the two.
    between_s: float = 0.0

    @property
    def tokens_per_s(self) -> float:
        """Output tokens per second of the whole batch."""
        return self.output_tokens / self.wall_s
