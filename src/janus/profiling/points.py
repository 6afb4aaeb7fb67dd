"""Which operating points are measured, on which clusters. Pure."""

from __future__ import annotations

from dataclasses import dataclass

#: A stream goes on for at least so many tokens, or there is nothing to measure.
LEAST_TOKENS = 64
#: Steps of prompts have as many rows as the token budget allows, which is the batcher's default.
_PROMPT_ROWS = (128, 512)

#: Few and many, short and long, so that requests, steps and tokens part.
_BURSTS = ((1, 16), (16, 16), (1, 96), (16, 96), (48, 32))


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One operating point: streams that decode from a context on, or, without any, prompts."""

    batch: int
    #: Tokens of the prompts.
    prompt: int

    @property
    def name(self) -> str:
        """In a word or two."""
        return f"batch {self.batch}, context {self.prompt}" if self.batch else f"prompt of {self.prompt}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How much is measured."""

    #: Expert instances of the clusters.
    experts: tuple[int, ...]
    batches: tuple[int, ...]
    contexts: tuple[int, ...]
    #: Windows per point, and seconds of each.
    windows: int
    window_s: float
    #: Prompt tokens over all streams of a point: a long prefill before a short look is no use of time.
    most_prompt_tokens: int = 8192
    #: Streams and tokens of each, from the first byte to the last: what gateway and clients take is seen by these.
    bursts: tuple[tuple[int, int], ...] = ()


FULL = Effort(
    experts=(1, 2, 4), batches=(1, 4, 16, 64), contexts=(16, 256, 768), windows=5, window_s=0.4, bursts=_BURSTS * 2
)
#: Nothing at all: what was measured before is fitted again.
NONE = Effort(experts=(), batches=(), contexts=(), windows=0, window_s=0.0)
QUICK = Effort(experts=(1, 2), batches=(1, 8, 64), contexts=(16, 256), windows=3, window_s=0.3, bursts=_BURSTS)


def points(effort: Effort, *, max_model_len: int) -> list[Point]:
    """Return the points for a model of that context, the shortest streams first.

    Contexts that leave no room are shortened to what does; the same point is not measured twice.
    """
    longest = max(1, max_model_len - 2 * LEAST_TOKENS)
    contexts = sorted({min(context, longest) for context in effort.contexts})
    decode = [
        Point(batch=batch, prompt=context)
        for context in contexts
        for batch in effort.batches
        if batch * context <= effort.most_prompt_tokens
    ]
    prompts = sorted({min(rows, longest) for rows in _PROMPT_ROWS})
    return decode + [Point(batch=0, prompt=rows) for rows in prompts]
