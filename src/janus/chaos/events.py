"""A long sequence of random events, the same for the same seed: pure, so that a failure can be had again."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from janus.chaos.prompts import DOMAINS

Kind: TypeAlias = Literal["join", "leave", "kill", "move"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Numbers of instances that the sequence stays within, each as (least, most)."""

    attention: tuple[int, int] = (1, 3)
    experts: tuple[int, int] = (3, 5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that happens to a cluster.

    ``join``, ``leave``: there are ``attention`` and ``experts`` instances from then on. ``kill``: ``target`` gets
    SIGKILL. ``move``: ``target`` is replaced, so that its replicas move away and back, and the text domain of all
    prompts becomes ``prompts``, so that other experts are busy.
    """

    index: int
    do: Kind
    #: Seconds of load before it.
    pause_s: float
    target: str = ""
    prompts: str = ""
    attention: int
    experts: int

    def __str__(self) -> str:
        if self.do in ("join", "leave"):
            return f"{self.do}: {self.attention} attention, {self.experts} expert instances"
        return f"{self.do} {self.target}" + (f", prompts {self.prompts}" if self.prompts else "")


@dataclass(slots=True, kw_only=True)
class Sequence:
    """Draws events. Instances are called ``role-0`` to ``role-(n-1)``, as ``janus scale`` keeps them."""

    seed: int
    attention: int = 2
    experts: int = 4
    bounds: Bounds = field(default_factory=Bounds)
    longest_pause_s: float = 1.0

    def draw(self, count: int) -> Iterator[Event]:
        """Yield ``count`` events; the last ones bring back the numbers that there were at the start."""
        source = random.Random(self.seed)
        now = Event(index=-1, do="move", pause_s=0, attention=self.attention, experts=self.experts)
        for index in range(count):
            way_back = abs(now.attention - self.attention) + abs(now.experts - self.experts)
            spare = count - index - way_back
            now = self._any(now, source, resize=spare > 1) if spare > 0 else self._towards_start(now)
            now = replace(now, index=index, pause_s=round(source.uniform(0.0, self.longest_pause_s), 3))
            yield now

    def _any(self, now: Event, source: random.Random, *, resize: bool) -> Event:
        do: Kind = source.choice(("join", "leave", "kill", "move") if resize else ("kill", "move"))
        base = replace(now, do=do, target="", prompts="")
        if do in ("join", "leave"):
            return self._resized(base, source, 1 if do == "join" else -1)
        if do == "kill":
            role = source.choice(("attention", "expert", "expert", "controller"))
            count = {"attention": now.attention, "expert": now.experts, "controller": 1}[role]
            return replace(base, target=f"{role}-{source.randrange(count)}")
        target = f"expert-{source.randrange(now.experts)}"
        return replace(base, target=target, prompts=source.choice(sorted(DOMAINS)))

    def _resized(self, base: Event, source: random.Random, step: int) -> Event:
        """One more, or one fewer, of a role that has room for it; the other way round where none has."""
        fits = [field for field in ("attention", "experts") if self._fits(field, getattr(base, field) + step)]
        if not fits:
            return self._resized(replace(base, do="leave" if step > 0 else "join"), source, -step)
        chosen = source.choice(fits)
        return replace(base, **{chosen: getattr(base, chosen) + step})

    def _fits(self, role: str, count: int) -> bool:
        least, most = self.bounds.attention if role == "attention" else self.bounds.experts
        return least <= count <= most

    def _towards_start(self, now: Event) -> Event:
        role = "attention" if now.attention != self.attention else "experts"
        step = 1 if getattr(now, role) < getattr(self, role) else -1
        changed = replace(now, do="join" if step > 0 else "leave", target="", prompts="")
        return replace(changed, **{role: getattr(now, role) + step})
