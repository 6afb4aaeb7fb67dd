"""The load: streams that ask one request after the other, and what became of each."""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from janus.chaos.prompts import SETS
from janus.chaos.scenario import Load
from janus.chaos.stream import Sample, complete
from janus.errors import JanusError

#: Longer than any recovery that is worth the name; a stream that takes longer is reported as one that never ended.
TIMEOUT_S = 60.0


def texts(prompts: str | Sequence[str]) -> tuple[str, ...]:
    """The prompts of a set, or those that are given."""
    return SETS[prompts] if isinstance(prompts, str) else tuple(prompts)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Collect no garbage while the load is on.

    Its clients live in this process, which keeps every token of every run: a full collection takes hundreds of
    milliseconds, and would be taken for a stall of the cluster.
    """
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def body(load: Load, prompt: str) -> dict[str, Any]:
    """One request; everything that a checkpoint's own defaults might set is said."""
    fields = {
        "prompt": prompt,
        "max_tokens": load.max_tokens,
        "temperature": load.temperature,
        "top_p": 1,
        "top_k": 0,
        "repetition_penalty": load.repetition_penalty,
        "ignore_eos": True,
        # What each token reads is told with its log-probability: lost and repeated ones are counted, not guessed at.
        "logprobs": 0,
    }
    return fields | ({"seed": load.seed} if load.seed is not None else {})


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request of the load, over."""

    prompt: str
    sample: Sample


@dataclass(slots=True)
class Running:
    """A load that is on. ``run`` ends once ``over`` is set and every stream has its answer."""

    url: str
    load: Load
    draw: random.Random
    prompts: tuple[str, ...]
    requests: list[Request] = field(default_factory=list)
    #: Of each stream: whether it has its first token.
    begun: list[asyncio.Event] = field(init=False)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    _asked: int = 0

    def __post_init__(self) -> None:
        self.begun = [asyncio.Event() for _ in range(self.load.streams)]

    async def run(self) -> None:
        """Keep every stream busy until ``over``."""
        async with asyncio.TaskGroup() as group:
            for number, begun in enumerate(self.begun):
                group.create_task(self._stream(begun), name=f"stream-{number}")

    async def until_begun(self, *, timeout_s: float) -> None:
        """Wait for the first token of every stream.

        Raises:
            JanusError: it did not come.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.gather(*(begun.wait() for begun in self.begun))
        except TimeoutError:
            errors = sorted({request.sample.error for request in self.requests if request.sample.error})
            waiting = sum(not begun.is_set() for begun in self.begun)
            problem = f"{waiting} of {len(self.begun)} streams have no token after {timeout_s:g} s"
            raise JanusError(f"{self.url}: {problem}{': ' if errors else ''}{'; '.join(errors)}") from None

    async def _stream(self, begun: asyncio.Event) -> None:
        while not self.over.is_set():
            if self.load.rate and not begun.is_set():
                begun.set()  # with gaps between requests there is no moment at which all are busy
            if self.load.rate and await self._over_within(self.draw.expovariate(self.load.rate / self.load.streams)):
                return
            prompt = self.prompts[self._asked % len(self.prompts)]
            self._asked += 1
            sample = await complete(self.url, body(self.load, prompt), timeout_s=TIMEOUT_S, begun=begun)
            self.requests.append(Request(prompt=prompt, sample=sample))
            if not sample.ok:
                # A refused client comes back when it is told to, and no sooner than a moment later.
                await self._over_within(min(sample.retry_after_s or 0.2, 2.0))

    async def _over_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self.over.wait()
        except TimeoutError:
            return False
        return True


async def undisturbed(url: str, load: Load, prompts: Sequence[str]) -> dict[str, list[str]]:
    """What the cluster answers while nothing is done to it: prompt -> tokens.

    Raises:
        JanusError: a prompt was not answered.
    """
    found: dict[str, list[str]] = {}
    left = list(dict.fromkeys(prompts))

    async def stream() -> None:
        while left:
            prompt = left.pop()
            sample = await complete(url, body(load, prompt), timeout_s=TIMEOUT_S)
            if not sample.ok or len(sample.token_texts) != sample.tokens:
                problem = sample.error or f"{len(sample.token_texts)} of {sample.tokens} tokens are told"
                raise JanusError(f"{url}: no undisturbed answer to {prompt!r}: {problem}; see janus status")
            found[prompt] = sample.token_texts

    tasks = [asyncio.create_task(stream(), name=f"undisturbed-{number}") for number in range(load.streams)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return found
