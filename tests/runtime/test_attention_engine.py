"""The engine of an attention instance on a tiny model in this process: tokens, failures, and how it drains."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from janus.errors import DispatchError, InstanceLost, ReplicaMissing
from janus.exchange.local import LocalExchange
from janus.model.checkpoint import Checkpoint
from tests.runtime.attention_harness import PROMPTS, StartEngine, alone, engines
from tests.runtime.world import LIMIT_S
from tests.waiting import begun


@pytest.fixture
async def start(checkpoint: Checkpoint, local: LocalExchange) -> AsyncIterator[StartEngine]:
    async with engines(checkpoint, local) as make:
        yield make


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
    draining = await begun(running.engine.drain(LIMIT_S), name="drain")
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
