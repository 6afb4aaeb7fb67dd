"""An attention engine on a tiny model in this process; its experts fail, stay away or answer when a test says so."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import torch

from janus.core.batcher import Batcher, BatcherConfig, StepPlan
from janus.core.micro_batches import FixedMicroBatches
from janus.errors import InstanceLost
from janus.exchange.local import LocalExchange, LocalReceipt
from janus.messages.control import SamplingParams, Submit, TokenDelta
from janus.model.attention_model import AttentionModel
from janus.model.checkpoint import Checkpoint
from janus.model.kv_cache import PagedKVCache
from janus.runtime.attention_engine import AttentionEngine
from janus.runtime.routing_sampler import RoutingSampler
from janus.runtime.step_news import StepNews
from tests.runtime.world import LIMIT_S
from tests.waiting import turns


@dataclass(frozen=True, slots=True, eq=False)
class HeldReceipt(LocalReceipt):
    """A dispatch, and the moment at which its answer is there."""

    answer: asyncio.Future[None]
    #: The step that it belongs to.
    plan: StepPlan

    __eq__ = object.__eq__
    __hash__ = object.__hash__


class Experts(LocalExchange):
    """Local experts that fail, stay away, or keep their answers back, when a test says so."""

    def __init__(self, exchange: LocalExchange) -> None:
        super().__init__(exchange._bank, num_layers=2)
        #: Raised by the next dispatches, one each; ``None`` lets one pass.
        self.failures: list[Exception | None] = []
        #: Whether dispatches wait in ``held`` until they are answered.
        self.holds = False
        self.held: list[HeldReceipt] = []
        self.most_held = 0
        #: Requests whose steps fail at every dispatch.
        self.poison: frozenset[str] = frozenset()
        self.there = True
        self.came = asyncio.Event()
        self.dispatched = asyncio.Event()
        self.waits_for_change = 0
        #: By the name of the task that computes them.
        self.plans: dict[str, StepPlan] = {}

    def ready(self) -> bool:
        return self.there

    async def wait_ready(self, timeout_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not self.there:
                    self.came.clear()
                    await self.came.wait()
        if not self.there:
            raise InstanceLost(f"not linked to expert-0 after {timeout_s:g} s", instances=("expert-0",))

    async def wait_changed(self, timeout_s: float) -> None:
        self.waits_for_change += 1

    def come(self) -> None:
        self.there = True
        self.came.set()

    def dispatch(
        self, layer: int, x_TH: torch.Tensor, topk_ids_TK: torch.Tensor, topk_weights_TK: torch.Tensor
    ) -> HeldReceipt:
        self.dispatched.set()
        failure = self.failures.pop(0) if self.failures else None
        if failure is not None:
            raise failure
        plan = self._plan()
        if self.poison & {chunk.request_id for chunk in plan.chunks}:
            raise InstanceLost("expert-1: no answer", instances=("expert-1",))
        y_TH = super().dispatch(layer, x_TH, topk_ids_TK, topk_weights_TK).y_TH
        receipt = HeldReceipt(layer, y_TH, asyncio.get_running_loop().create_future(), plan)
        if self.holds:
            self.held.append(receipt)
            self.most_held = max(self.most_held, len(self.held))
        else:
            receipt.answer.set_result(None)
        return receipt

    async def combine(self, receipt: LocalReceipt, residual_TH: torch.Tensor | None = None) -> torch.Tensor:
        assert isinstance(receipt, HeldReceipt)
        try:
            await receipt.answer
        finally:
            if receipt in self.held:
                self.held.remove(receipt)
        return await super().combine(receipt, residual_TH)

    def answer(self, receipt: HeldReceipt, error: Exception | None = None) -> None:
        """Let one dispatch go on, or fail it."""
        self.held.remove(receipt)
        if error is None:
            receipt.answer.set_result(None)
        else:
            receipt.answer.set_exception(error)

    def release(self) -> None:
        """Answer everything, from now on at once."""
        self.holds = False
        for receipt in tuple(self.held):
            self.answer(receipt)

    async def hold(self, count: int) -> list[HeldReceipt]:
        """Return ``count`` dispatches that wait, one per step in flight, oldest first."""
        async with asyncio.timeout(LIMIT_S):
            while len(self.held) < count:
                self.dispatched.clear()
                await self.dispatched.wait()
        assert len(self.held) == count
        return list(self.held)

    async def answer_in_any_order(self, seed: int) -> None:
        """Answer for ever, not the oldest first."""
        source = random.Random(seed)
        while True:
            while self.held:
                await turns(source.randrange(4))  # the others get as far as they can
                self.answer(source.choice(self.held))
            self.dispatched.clear()
            await self.dispatched.wait()

    def _plan(self) -> StepPlan:
        task = asyncio.current_task()
        assert task is not None
        return self.plans.get(task.get_name()) or self.plans["last"]


class SpiedBatcher(Batcher):
    """Notes which task computes what: each step in flight has its own, named after the step."""

    plans: dict[str, StepPlan]

    def plan(self, now: float, *, share: int = 1) -> StepPlan | None:
        plan = super().plan(now, share=share)
        if plan is not None:
            self.plans[f"step[{plan.step_id}]"] = self.plans["last"] = plan
        return plan


@dataclass
class Running:
    """An engine that runs, and everything it has told."""

    engine: AttentionEngine
    exchange: Experts
    task: asyncio.Task[None]
    deltas: dict[str, list[TokenDelta]] = field(default_factory=dict)
    news: list[StepNews] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def submit(self, name: str, prompt: list[int], **params: object) -> None:
        values = {"temperature": 0.0, "max_tokens": 20, "ignore_eos": True, **params}
        emitted = values.pop("emitted_ids", [])
        self.engine.submit(
            Submit(request_id=name, prompt_ids=prompt, params=SamplingParams(**values), emitted_ids=emitted)  # type: ignore[arg-type]
        )

    def tokens(self, name: str) -> list[int]:
        return [token for delta in self.deltas.get(name, []) for token in delta.token_ids]

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(LIMIT_S):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    async def end(self, name: str) -> TokenDelta:
        """The delta that ends a request."""
        await self.until(lambda: name in self.deltas and self.deltas[name][-1].finish_reason)
        ends = [delta for delta in self.deltas[name] if delta.finish_reason]
        assert len(ends) == 1
        return ends[0]


StartEngine = Callable[..., Running]


@contextlib.asynccontextmanager
async def engines(checkpoint: Checkpoint, local: LocalExchange) -> AsyncIterator[StartEngine]:
    """Start engines; they end with the context."""
    model = AttentionModel.load(checkpoint, checkpoint.config, torch.float32, torch.device("cpu"))
    tasks: list[asyncio.Task[None]] = []

    def make(
        *,
        num_blocks: int = 64,
        recovery_timeout_s: float = LIMIT_S,
        micro_batches: int = 1,
        routing: RoutingSampler | None = None,
    ) -> Running:
        limits = BatcherConfig(
            max_running=8, token_budget=16, block_size=4, num_blocks=num_blocks, max_model_len=128, max_waiting=16
        )

        def publish(news: StepNews) -> None:
            running.news.append(news)
            for delta in news.deltas:
                running.deltas.setdefault(delta.request_id, []).append(delta)
            running.changed.set()

        exchange, batcher = Experts(local), SpiedBatcher(limits)
        batcher.plans = exchange.plans
        engine = AttentionEngine(
            model=model,
            kv=PagedKVCache(checkpoint.config, num_blocks, 4, torch.float32, torch.device("cpu")),
            batcher=batcher,
            exchange=exchange,
            micro_batches=FixedMicroBatches(micro_batches),
            recovery_timeout_s=recovery_timeout_s,
            publish=publish,
            routing=routing,
        )
        tasks.append(asyncio.create_task(engine.run(), name="engine"))
        running = Running(engine, exchange, tasks[-1])
        return running

    yield make
    for task in tasks:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


PROMPTS = {f"r{index}": [3 + index, 7, 11, 2 * index + 5, *range(20, 20 + 5 * index)] for index in range(6)}


async def alone(start: StartEngine) -> dict[str, list[int]]:
    """The tokens of every prompt, each computed with nothing beside it."""
    running = start()
    for name, prompt in PROMPTS.items():
        running.submit(name, prompt)
        assert (await running.end(name)).finish_reason == "length"
    return {name: running.tokens(name) for name in PROMPTS}
