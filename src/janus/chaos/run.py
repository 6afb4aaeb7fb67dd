"""One run of a scenario: the load, the fault under it, and what came of both."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from janus.chaos.figures import Goodput, goodput, stall_s
from janus.chaos.judge import Verdict, judge
from janus.chaos.load import TIMEOUT_S, Request, Running, texts, undisturbed, uninterrupted
from janus.chaos.moves import Moves, moves_after
from janus.chaos.scenario import Scenario
from janus.chaos.steps import Control, Done, Network, Steps
from janus.chaos.target import Look, Target

_BEGIN_LIMIT_S = 30.0
#: After a fault every instance must be back within this, or the run fails.
_WHOLE_LIMIT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Wrong:
    """One answer that is not what it should be."""

    prompt: str
    error: str
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """What one run showed. Times are seconds after the first step."""

    steps: list[Done]
    requests: int
    in_flight: int
    lost: int
    repeated: int
    changed: int
    undelivered: int
    client_errors: int
    refused: int
    #: Of every stream in flight during the steps: its longest wait for a token that was over after the first began.
    stalls_s: list[float]
    #: Of every request that was sent after the first step and answered: until its first token.
    ttfts_s: list[float]
    goodput: Goodput | None
    #: Until goodput is back and the controller knows of nothing that clients could notice; None: not under load.
    recovered_s: float | None
    #: Until every instance is there and ready again.
    whole_s: float
    moves: Moves
    wrong: list[Wrong] = field(default_factory=list)
    #: What the controller said was not as it should be, in the order in which it did.
    told: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Runner:
    """Runs one scenario on one cluster, as often as is asked for."""

    scenario: Scenario
    target: Target
    control: Control
    network: Network | None = None
    _reference: Mapping[str, list[str]] = field(default_factory=dict)

    async def prepare(self) -> None:
        """Wait until the cluster is whole, and record its undisturbed answers.

        Raises:
            ConfigError: the cluster is smaller than the scenario needs.
            JanusError: it does not become whole, or does not answer.
        """
        await self.target.until_whole(timeout_s=_WHOLE_LIMIT_S)
        await self.target.check(self.scenario.cluster)
        load, steps = self.scenario.load, self.scenario.step
        prompts = [*texts(load.prompts), *(text for step in steps if step.prompts for text in texts(step.prompts))]
        self._reference = await undisturbed(self.target.url, load, prompts)

    async def run(self, draw: random.Random) -> RunResult:
        """Run once, and leave the cluster whole and of the size that it had.

        Raises:
            JanusError: the load did not begin, a step could not be done, or the cluster did not become whole again.
        """
        load, sizes = self.scenario.load, {role: len(self.target.names(role)) for role in ("attention", "expert")}
        running = Running(self.target.url, load, draw, texts(load.prompts))
        steps = Steps(self.target, self.control, self.network, running, draw)
        looks: list[Look] = []
        with uninterrupted():
            async with asyncio.TaskGroup() as group:
                watcher = group.create_task(self.target.watch(looks.append), name="watch")
                streams = group.create_task(running.run(), name="load")
                await running.until_begun(timeout_s=_BEGIN_LIMIT_S)
                start = time.perf_counter()
                await steps.run(self.scenario)
                whole = await self.target.until_whole(timeout_s=_WHOLE_LIMIT_S)
                await asyncio.sleep(load.after)
                end = time.perf_counter()
                running.over.set()
                async with asyncio.timeout(2 * TIMEOUT_S):
                    await streams
                await self._restore(sizes)
                await self.target.until_whole(timeout_s=_WHOLE_LIMIT_S)
                watcher.cancel()
        return self._result(running.requests, steps.done, looks, start=start, end=end, whole=whole)

    async def _restore(self, sizes: Mapping[str, int]) -> None:
        """Give the cluster back the number of instances that it had."""
        if {role: len(self.target.names(role)) for role in sizes} != sizes:
            await self.control.scale(attention=sizes["attention"], experts=sizes["expert"])
        self.target.away.clear()

    def _result(
        self, requests: list[Request], done: list[Done], looks: list[Look], *, start: float, end: float, whole: Look
    ) -> RunResult:
        fault_at, over_at = min(step.at for step in done), max(step.over for step in done)
        samples = [request.sample for request in requests]
        verdicts = [
            judge(self._reference[request.prompt], request.sample.token_texts, whole=request.sample.ok)
            for request in requests
        ]
        wrong = [
            Wrong(prompt=request.prompt, error=request.sample.error, verdict=verdict)
            for request, verdict in zip(requests, verdicts, strict=True)
            if request.sample.error or not verdict.right
        ]
        stalls = [stall_s(s.sent_at, s.tokens_at, s.ended_at, fault_at=fault_at, over_at=over_at) for s in samples]
        in_flight = [stall for stall in stalls if stall is not None]
        pace = goodput([at for s in samples for at in s.tokens_at], start=start, fault_at=fault_at, end=end)
        return RunResult(
            steps=done,
            requests=len(requests),
            in_flight=len(in_flight),
            lost=sum(verdict.lost for verdict in verdicts),
            repeated=sum(verdict.repeated for verdict in verdicts),
            changed=sum(verdict.changed for verdict in verdicts),
            undelivered=sum(verdict.undelivered for verdict in verdicts),
            client_errors=sum(not sample.ok for sample in samples),
            refused=sum(not sample.ok and sample.sent_at > _struck_at(done) for sample in samples),
            stalls_s=in_flight,
            ttfts_s=[sample.ttft_s for sample in samples if sample.ok and sample.sent_at > fault_at],
            goodput=pace,
            recovered_s=_recovered_s(pace, looks, fault_at),
            whole_s=_whole_at(looks, whole, fault_at) - fault_at,
            moves=moves_after([look.placed for look in looks if look.placed], fault_at),
            wrong=wrong,
            told=list(dict.fromkeys(problem for look in looks for problem in look.problems)),
        )


def _struck_at(done: Sequence[Done]) -> float:
    """When the first step had happened: a killed process may take requests until it has ended."""
    first = min(done, key=lambda step: step.at)
    return first.over if first.do == "kill" else first.at


def _recovered_s(pace: Goodput | None, looks: list[Look], fault_at: float) -> float | None:
    """Goodput is back, and the gateway takes requests."""
    if pace is None or pace.recovered_s is None:
        return None
    unready = [after.at for before, after in pairwise(looks) if after.at > fault_at and not before.serves]
    return max(pace.recovered_s, *(at - fault_at for at in unready), 0.0)


def _whole_at(looks: list[Look], whole: Look, fault_at: float) -> float:
    """When the last problem between the fault and ``whole`` was over; the fault itself when there was none."""
    seen = [*(look for look in looks if fault_at < look.at < whole.at), whole]
    last = max((index for index, look in enumerate(seen) if look.problems), default=None)
    return fault_at if last is None else seen[last + 1].at
