"""Puts a cluster at an operating point, through its gateway, and looks at its instances' counters there."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from janus.chaos.stream import Sample, complete
from janus.cluster.state import ClusterState
from janus.core.planning.performance import Load
from janus.core.planning.sizes import ModelSizes
from janus.errors import JanusError
from janus.profiling.cores import CoreMeter, Cores, ran_s
from janus.profiling.host_work import HostWork
from janus.profiling.observations import PARTS, Observation, per_step, undisturbed
from janus.profiling.points import Effort, Point

_REQUEST_TIMEOUT_S = 600.0
_STATUS_TIMEOUT_S = 10.0
#: Rounds of streams in which a point's windows must be had.
_ROUNDS = 12
#: Where others use more cores than this, up to so many times as many windows are looked at.
_QUIET_CORES = 0.1
_PATIENCE = 2
#: Streams that have come this far are near their end.
_NEARLY = 0.9
#: Tokens of the prompts of a burst.
_BURST_PROMPT = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """A cluster that runs, and the model that it serves."""

    state: ClusterState
    model: ModelSizes
    vocab_size: int
    max_model_len: int
    attention: int
    experts: int

    @property
    def url(self) -> str:
        """Base URL of its endpoint, ending in ``/v1``."""
        return f"{self.state.url}/v1"

    def pids(self) -> list[int]:
        """The processes of the cluster."""
        return [instance.pid for instance in self.state.instances]

    def gateways(self) -> list[int]:
        """The processes that clients talk to."""
        return [instance.pid for instance in self.state.instances if instance.role == "gateway"]

    def ops(self, role: str) -> dict[str, str]:
        """Operations endpoint of each instance of a role."""
        return {each.name: f"http://127.0.0.1:{each.ops_port}" for each in self.state.instances if each.role == role}


@dataclass(frozen=True, slots=True)
class _Window:
    parts: dict[str, float]
    #: Mean tokens of context per stream, or of prompt that a token looks back on.
    context: float
    rows: float
    others_cores: float

    @property
    def total_s(self) -> float:
        return sum(self.parts[part] for part in PARTS)


class Prober:
    """Measures points of one cluster, one after the other."""

    def __init__(self, bench: Bench, client: httpx.AsyncClient, *, seed: int = 0) -> None:
        self._bench = bench
        self._client = client
        self._draw = random.Random(seed)

    async def warm_up(self, plan: Sequence[Point]) -> None:
        """Compute once what is computed slowly the first time: the largest batch, and the longest prompts."""
        largest = max(plan, key=lambda point: point.batch)
        brief = Effort(experts=(), batches=(), contexts=(), windows=1, window_s=0.3)
        for point in (largest, *(point for point in plan if not point.batch)):
            await self.observe(point, brief)

    async def observe(self, point: Point, effort: Effort) -> Observation:
        """Measure one point: the median of its windows; where others use the cores, of the quietest of twice as many.

        Raises:
            JanusError: a request failed, or no step could be seen.
        """
        measure = self._decoding if point.batch else self._prompts
        windows: list[_Window] = []
        for _ in range(_ROUNDS):
            quiet = [window for window in windows if window.others_cores <= _QUIET_CORES]
            if len(quiet) >= effort.windows or len(windows) >= _PATIENCE * effort.windows:
                break
            windows += [window async for window in measure(point, effort, effort.windows)]
        if not windows:
            raise JanusError(f"{point.name}: no step could be seen; the streams ended too soon")
        windows.sort(key=lambda window: window.others_cores)
        best = sorted(windows[: effort.windows], key=lambda window: window.total_s)
        # The lower one of two: what disturbs a step makes it longer.
        chosen = best[(len(best) - 1) // 2]
        bench, parts = self._bench, chosen.parts
        load = (
            Load(batch=point.batch * bench.attention, context=chosen.context)
            if point.batch
            else Load(batch=0, context=0, prefill=chosen.rows * bench.attention, prefill_context=chosen.context)
        )
        return Observation(
            model=bench.model,
            attention=bench.attention,
            experts=bench.experts,
            load=load,
            a_max=parts["a_max"],
            attention_s=parts["attention_s"],
            exchange_s=parts["exchange_s"],
            experts_s=parts["experts_s"],
            other_s=parts["other_s"],
            low_s=best[0].total_s,
            high_s=best[-1].total_s,
            others_cores=chosen.others_cores,
        )

    async def burst(self, streams: int, tokens: int) -> HostWork:
        """Send so many requests at once and read every answer to its end.

        Raises:
            JanusError: one failed.
        """
        tokens = min(tokens, self._bench.max_model_len - _BURST_PROMPT - 1)
        bodies = [self._body(_BURST_PROMPT, tokens) for _ in range(streams)]
        before = await self._look()
        gateway_s, client_s = self._gateways_ran_s(), time.process_time()
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._ask(body), name=f"burst[{n}]") for n, body in enumerate(bodies)]
        client_s, gateway_s = time.process_time() - client_s, self._gateways_ran_s() - gateway_s
        self._check(tasks)
        after = await self._look()
        return HostWork(
            requests=streams,
            messages=round(sum(after[name]["steps"] - before[name]["steps"] for name in after)),
            tokens=streams * tokens,
            gateway_s=gateway_s,
            client_s=client_s,
        )

    def _gateways_ran_s(self) -> float:
        return sum(ran_s(pid) for pid in self._bench.gateways())

    async def _decoding(self, point: Point, effort: Effort, wanted: int) -> AsyncIterator[_Window]:
        """Windows in which every stream decodes."""
        streams = point.batch * self._bench.attention
        room = self._bench.max_model_len - point.prompt - 1
        async with self._streaming(streams, point.prompt, room) as tasks:
            begun = await self._look()
            meter, before, since = CoreMeter(self._bench.pids()), begun, time.perf_counter()
            for _ in range(wanted):
                await asyncio.sleep(effort.window_s)
                after, now = await self._look(), time.perf_counter()
                cores = meter.read()
                emitted = _tokens(begun, after) / streams
                if emitted > _NEARLY * room or any(task.done() for task in tasks):
                    self._check(tasks)
                    return
                parts = self._parts(before, after, now - since, cores)
                if parts:
                    context = point.prompt + (_tokens(begun, before) / streams + emitted) / 2
                    yield _Window(parts, context, 0.0, cores.others)
                before, since = after, now

    async def _prompts(self, point: Point, effort: Effort, wanted: int) -> AsyncIterator[_Window]:
        """Each prompt of one token's answer is a window: nothing else runs meanwhile."""
        for _ in range(wanted):
            meter, before = CoreMeter(self._bench.pids()), await self._look()
            bodies = [self._body(point.prompt, 1) for _ in range(self._bench.attention)]
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._ask(body), name=f"prompt[{n}]") for n, body in enumerate(bodies)]
            self._check(tasks)
            after, cores = await self._look(), meter.read()
            parts = self._parts(before, after, None, cores)
            # One step computes a prompt of up to the token budget; another was what streams before had left.
            if parts.get("steps") == 1:
                yield _Window(parts, point.prompt / 2, point.prompt / parts["steps"], cores.others)

    @contextlib.asynccontextmanager
    async def _streaming(self, streams: int, prompt: int, tokens: int) -> AsyncIterator[list[asyncio.Task[Sample]]]:
        """Streams that have all begun; they are cancelled on the way out."""
        events = [asyncio.Event() for _ in range(streams)]
        tasks = [
            asyncio.create_task(self._ask(self._body(prompt, tokens), begun=event), name=f"stream[{index}]")
            for index, event in enumerate(events)
        ]
        everyone = asyncio.gather(*(event.wait() for event in events))
        try:
            waited: list[asyncio.Future[Any]] = [everyone, *tasks]
            await asyncio.wait(waited, timeout=_REQUEST_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
            if not everyone.done():
                self._check(tasks)
                raise JanusError("streams ended before all of them had begun; the model's context is too short")
            yield tasks
        finally:
            everyone.cancel()
            for task in tasks:
                task.cancel()
            await asyncio.gather(everyone, *tasks, return_exceptions=True)

    async def _ask(self, body: dict[str, object], *, begun: asyncio.Event | None = None) -> Sample:
        return await complete(self._bench.url, body, timeout_s=_REQUEST_TIMEOUT_S, begun=begun)

    def _body(self, prompt: int, tokens: int) -> dict[str, object]:
        ids = [self._draw.randrange(2, self._bench.vocab_size) for _ in range(prompt)]
        return {
            "model": self._bench.state.served_model_name,
            "prompt": ids,
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
        }

    @staticmethod
    def _check(tasks: Sequence[asyncio.Task[Sample]]) -> None:
        """Raise JanusError for the first request that failed."""
        for task in tasks:
            if task.done() and not task.cancelled() and not task.result().ok:
                raise JanusError(f"a request failed: {task.result().error}")

    async def _look(self) -> dict[str, dict[str, float]]:
        """The counters of the attention instances, as ``per_step`` takes them."""
        found = {}
        for name, url in self._bench.ops("attention").items():
            status = (await self._client.get(f"{url}/status", timeout=_STATUS_TIMEOUT_S)).raise_for_status().json()
            exchange = {f"exchange.{field}": value for field, value in status["exchange_times"].items()}
            found[name] = {**status["step_times"], **exchange}
        return found

    def _parts(
        self,
        before: dict[str, dict[str, float]],
        after: dict[str, dict[str, float]],
        wall_s: float | None,
        cores: Cores,
    ) -> dict[str, float]:
        parts = per_step(before, after, moe_layers=self._bench.model.moe_layers, wall_s=wall_s)
        if not parts:
            return parts
        attention, experts = (
            [cores.turns[each.pid] for each in self._bench.state.instances if each.role == role]
            for role in ("attention", "expert")
        )
        return undisturbed(parts, attention=max(attention, key=lambda turn: turn.waited_s), experts=experts)

    async def load_rates(self) -> list[float]:
        """Bytes of replicas per second that each expert instance has seen, from its faster source."""
        rates = []
        for url in self._bench.ops("expert").values():
            status = (await self._client.get(f"{url}/status", timeout=_STATUS_TIMEOUT_S)).raise_for_status().json()
            rates += [max(status["load_bytes_per_s"].values())] if status["load_bytes_per_s"] else []
        return rates


def _tokens(before: dict[str, dict[str, float]], after: dict[str, dict[str, float]]) -> float:
    return sum(after[name]["tokens"] - before[name]["tokens"] for name in after)
