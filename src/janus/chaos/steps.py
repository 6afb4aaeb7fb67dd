"""Does what a scenario's steps say."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

from janus.chaos.load import Running, texts
from janus.chaos.scenario import Scenario, Step
from janus.chaos.target import Target, has_ended
from janus.errors import ConfigError, JanusError

#: Of the duty cycle of a slow instance: one that stands still for a share of every such period.
_PERIOD_S = 0.05
#: How often to look whether a killed process has ended, and how many seconds apart.
_DEATH_LOOKS, _DEATH_LOOK_S = 1000, 0.005


class Control(Protocol):
    """Operations on a running cluster, as ``janus scale``, ``janus drain`` and ``janus restart`` offer them."""

    async def scale(self, *, attention: int | None, experts: int | None) -> None: ...
    async def drain(self, name: str) -> None: ...
    async def restart(self, name: str) -> None: ...
    async def rolling_restart(self) -> None: ...


class Network(Protocol):
    """Links between nodes that can be cut, where there are nodes."""

    def cut(self, instance: str) -> None: ...
    def heal(self, instance: str) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """One step, as it was done. ``at`` and ``over`` are seconds of ``time.perf_counter``."""

    do: str
    target: str
    at: float
    over: float


@dataclass(slots=True)
class Steps:
    """The steps of one run; what is left to chance is drawn from ``draw``."""

    target: Target
    control: Control
    network: Network | None
    running: Running
    draw: random.Random
    done: list[Done] = field(default_factory=list)

    async def run(self, scenario: Scenario) -> None:
        """Do every step at its moment; returns when the last is over. Those that last run beside each other."""
        start = time.perf_counter()
        timed = sorted(((step.moment(self.draw), index) for index, step in enumerate(scenario.step)))
        try:
            async with asyncio.TaskGroup() as group:
                for moment, index in timed:
                    step = scenario.step[index]
                    await asyncio.sleep(max(0.0, start + moment - time.perf_counter()))
                    group.create_task(self._do(step), name=f"step-{index}")
        finally:
            self.target.resume_all()

    async def _do(self, step: Step) -> None:
        name = self.target.choose(step.target, self.draw) if step.target else ""
        at = time.perf_counter()
        await self._action(step, name)
        self.done.append(Done(do=step.do, target=name or step.prompts, at=at, over=time.perf_counter()))

    async def _action(self, step: Step, name: str) -> None:
        actions: dict[str, Callable[[], Awaitable[None]]] = {
            "stop": lambda: self._stop(name, step.lasts),
            "slow": lambda: self._slow(name, step.lasts, step.share),
            "cut": lambda: self._cut(name, step.lasts),
            "drain": lambda: self._drain(name),
            "restart": lambda: self.control.restart(name),
            "scale": lambda: self._scale(step),
            "rolling-restart": self.control.rolling_restart,
            "wait": lambda: asyncio.sleep(step.lasts),
        }
        if step.do == "kill":
            await self._kill(name)
        elif step.do == "prompts":
            self.running.prompts = texts(step.prompts)
        else:
            await actions[step.do]()

    async def _kill(self, name: str) -> None:
        """Kill it, and wait until it has ended: who looked sooner would find the cluster whole."""
        pid = self.target.send(name, signal.SIGKILL)
        for _ in range(_DEATH_LOOKS):
            if has_ended(pid):
                return
            await asyncio.sleep(_DEATH_LOOK_S)
        raise JanusError(f"{name} (pid {pid}) lives on after SIGKILL; it may be stuck in the kernel")

    async def _stop(self, name: str, seconds: float) -> None:
        pid = self.target.send(name, signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            self.target.resume(pid)

    async def _slow(self, name: str, seconds: float, share: float) -> None:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            await self._stop(name, share * _PERIOD_S)
            await asyncio.sleep((1 - share) * _PERIOD_S)

    async def _drain(self, name: str) -> None:
        self.target.away.add(name)
        await self.control.drain(name)

    async def _cut(self, name: str, seconds: float) -> None:
        if self.network is None:
            raise ConfigError("do", "'cut' needs nodes with links between them", "run it on the testbed: make chaos")
        self.network.cut(name)
        try:
            await asyncio.sleep(seconds)
        finally:
            self.network.heal(name)

    async def _scale(self, step: Step) -> None:
        wanted = {role: _number(getattr(step, field), len(self.target.names(role))) for role, field in _SIZES.items()}
        await self.control.scale(attention=wanted["attention"], experts=wanted["expert"])


_SIZES = {"attention": "attention", "expert": "experts"}


def _number(wanted: str | int, now: int) -> int | None:
    """``3``, or ``"+1"`` of what there is; None where nothing is said."""
    if wanted == "":
        return None
    return now + int(wanted) if str(wanted)[0] in "+-" else int(wanted)
