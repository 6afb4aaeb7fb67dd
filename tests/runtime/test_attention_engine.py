"""The engine of an attention instance on a tiny model in this process: tokens, failures, and how it drains."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import pytest
import torch

from janus.core.batcher import Batcher, BatcherConfig
from janus.core.micro_batches import FixedMicroBatches
from janus.errors import DispatchError, InstanceLost, ReplicaMissing
from janus.exchange.local import LocalExchange, LocalReceipt
from janus.messages.control import SamplingParams, Submit, TokenDelta
from janus.model.attention_model import AttentionModel
from janus.model.checkpoint import Checkpoint
from janus.model.kv_cache import PagedKVCache
from janus.runtime.attention_engine import AttentionEngine, StepNews
from tests.runtime.world import LIMIT_S


class Faulty(LocalExchange):
    """Local experts that fail, or stay away, when a test says so."""

    def __init__(self, exchange: LocalExchange) -> None:
        super().__init__(exchange._bank, num_layers=2)
        #: Raised by the next dispatches, one each; ``None`` lets one pass.
        self.failures: list[Exception | None] = []
        self.there = True
        self.came = asyncio.Event()
        self.dispatched = asyncio.Event()
        self.waits_for_change = 0

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
    ) -> LocalReceipt:
        self.dispatched.set()
        failure = self.failures.pop(0) if self.failures else None
        if failure is not None:
            raise failure
        return super().dispatch(layer, x_TH, topk_ids_TK, topk_weights_TK)


@dataclass
class Running:
    """An engine that runs, and everything it has told."""

    engine: AttentionEngine
    exchange: Faulty
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


@pytest.fixture
async def start(checkpoint: Checkpoint, local: LocalExchange) -> AsyncIterator[StartEngine]:
    model = AttentionModel.load(checkpoint, checkpoint.config, torch.float32, torch.device("cpu"))
    tasks: list[asyncio.Task[None]] = []

    def make(*, num_blocks: int = 64, recovery_timeout_s: float = LIMIT_S) -> Running:
        limits = BatcherConfig(
            max_running=8, token_budget=16, block_size=4, num_blocks=num_blocks, max_model_len=128, max_waiting=16
        )

        def publish(news: StepNews) -> None:
            running.news.append(news)
            for delta in news.deltas:
                running.deltas.setdefault(delta.request_id, []).append(delta)
            running.changed.set()

        exchange = Faulty(local)
        engine = AttentionEngine(
            model=model,
            kv=PagedKVCache(checkpoint.config, num_blocks, 4, torch.float32, torch.device("cpu")),
            batcher=Batcher(limits),
            exchange=exchange,
            micro_batches=FixedMicroBatches(1),
            recovery_timeout_s=recovery_timeout_s,
            publish=publish,
        )
        running = Running(engine, exchange)
        tasks.append(asyncio.create_task(engine.run(), name="engine"))
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


async def test_tokens_do_not_depend_on_what_else_runs_nor_on_preemption(start: StartEngine) -> None:
    expected = await alone(start)
    assert {len(tokens) for tokens in expected.values()} == {20}
    crowded = start(num_blocks=16)
    for name, prompt in PROMPTS.items():
        crowded.submit(name, prompt)
    for name, tokens in expected.items():
        await crowded.end(name)
        assert crowded.tokens(name) == tokens
    stats = crowded.engine.stats()
    assert stats.preemptions > 0
    assert (stats.running, stats.waiting, stats.blocks_used) == (0, 0, 0)


async def test_deltas_are_numbered_without_gap(start: StartEngine) -> None:
    running = start()
    running.submit("a", [5, 6])
    await running.end("a")
    at = 0
    for delta in running.deltas["a"]:
        assert delta.index == at
        at += len(delta.token_ids)


async def test_a_request_resumes_after_the_tokens_it_has(start: StartEngine) -> None:
    running = start()
    running.submit("whole", [5, 6, 7])
    await running.end("whole")
    whole = running.tokens("whole")
    running.submit("resumed", [5, 6, 7], emitted_ids=whole[:9])
    await running.end("resumed")
    assert running.deltas["resumed"][0].index == 9
    assert running.tokens("resumed") == whole[9:]


async def test_a_lost_instance_costs_time_and_no_token(start: StartEngine) -> None:
    expected = await alone(start)
    running = start()
    for name, prompt in PROMPTS.items():
        running.submit(name, prompt)
    await running.until(lambda: len(running.news) > 3)
    running.exchange.failures = [None, InstanceLost("expert-0: died", instances=("expert-0",))]
    for name, tokens in expected.items():
        await running.end(name)
        assert running.tokens(name) == tokens
    assert running.engine.stats().failed_steps == 1


async def test_requests_wait_for_experts_that_come_back(start: StartEngine) -> None:
    running = start()
    running.exchange.there = False
    running.submit("a", [5, 6])
    assert not running.exchange.dispatched.is_set()
    running.exchange.come()
    assert (await running.end("a")).finish_reason == "length"


async def test_requests_are_refused_by_name_when_experts_stay_away(start: StartEngine) -> None:
    running = start(recovery_timeout_s=0.05)
    running.exchange.there = False
    running.submit("a", [5, 6])
    running.submit("b", [7, 8])
    for name in ("a", "b"):
        end = await running.end(name)
        assert (end.finish_reason, end.status, end.code) == ("error", 503, "experts_unavailable")
        assert "expert-0" in end.problem
        assert end.retry_after_s is not None
    running.exchange.come()
    running.submit("c", [5, 6])
    assert (await running.end("c")).finish_reason == "length"


async def test_experts_that_always_fail_do_not_hold_requests_for_ever(start: StartEngine) -> None:
    """The instance is linked, and every dispatch to it fails: the recovery limit holds all the same."""
    running = start(recovery_timeout_s=0.1)
    lost: list[DispatchError | None] = [InstanceLost("expert-1: no answer", instances=("expert-1",))]
    running.exchange.failures = lost * 1_000_000  # type: ignore[assignment]
    running.submit("a", [5, 6])
    end = await running.end("a")
    assert (end.status, end.code) == (503, "experts_unavailable")


async def test_a_missing_replica_makes_it_plan_again(start: StartEngine) -> None:
    running = start()
    running.exchange.failures = [ReplicaMissing("expert-0: stale epoch", instances=("expert-0",))]
    running.submit("a", [5, 6])
    assert (await running.end("a")).finish_reason == "length"
    assert running.exchange.waits_for_change == 1


async def test_a_bug_ends_the_requests_of_its_step_by_name_and_nothing_else(start: StartEngine) -> None:
    running = start()
    running.exchange.failures = [ZeroDivisionError("a bug")]
    running.submit("a", [5, 6])
    end = await running.end("a")
    assert (end.finish_reason, end.status, end.code) == ("error", 500, "step_failed")
    assert "ZeroDivisionError" in end.problem
    running.submit("b", [5, 6])
    assert (await running.end("b")).finish_reason == "length"


async def test_a_cancelled_request_gives_its_memory_back(start: StartEngine) -> None:
    running = start()
    running.submit("a", [5, 6], max_tokens=120)
    await running.until(lambda: len(running.tokens("a")) > 2)
    running.engine.cancel("a")
    running.submit("b", [7, 8])
    assert (await running.end("b")).finish_reason == "length"
    assert running.engine.stats().blocks_used == 0
    assert len(running.tokens("a")) < 120


@pytest.mark.parametrize(
    ("prompt", "params", "words"),
    [
        ([], {}, "no tokens"),
        ([5, 320], {}, "token id outside 0..319"),
        ([-1], {}, "token id outside"),
        ([5], {"temperature": -1.0}, "temperature"),
        ([5], {"max_tokens": 0}, "max_tokens"),
        ([5] * 200, {}, "shorten the prompt"),
    ],
)
async def test_bad_requests_are_refused_by_name(
    prompt: list[int], params: dict[str, object], words: str, start: StartEngine
) -> None:
    running = start()
    running.submit("bad", prompt, **params)
    end = await running.end("bad")
    assert (end.finish_reason, end.status) == ("error", 400)
    assert words in end.problem


async def test_draining_finishes_what_runs_and_refuses_what_is_new(start: StartEngine) -> None:
    running = start()
    running.submit("a", [5, 6])
    draining = asyncio.create_task(running.engine.drain(LIMIT_S), name="drain")
    await asyncio.sleep(0)
    running.submit("late", [5, 6])
    await draining
    assert (await running.end("a")).finish_reason == "length"
    late = await running.end("late")
    assert (late.status, late.code) == (503, "draining")


async def test_what_is_not_done_at_the_drain_limit_ends_by_name(start: StartEngine) -> None:
    running = start()
    running.exchange.there = False
    running.submit("a", [5, 6])
    await running.engine.drain(0.05)
    end = await running.end("a")
    assert (end.status, end.code) == (503, "draining")
