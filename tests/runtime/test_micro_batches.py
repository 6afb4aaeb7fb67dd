"""Several micro-batches in flight: one computes while others are away, and none is the worse for another one's fate."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import torch

from janus.core.batcher import StepPlan
from janus.core.micro_batches import AutoMicroBatches, FixedMicroBatches, policy_for
from janus.errors import InstanceLost, ReplicaMissing
from janus.exchange.local import LocalExchange
from janus.messages.control import TokenDelta
from janus.model.checkpoint import Checkpoint
from janus.model.config import ModelConfig
from janus.runtime.step_times import StepTimes, Turns
from tests.runtime.attention_harness import PROMPTS, HeldReceipt, Running, StartEngine, alone, engines
from tests.runtime.world import HALVES, LIMIT_S, Pool, batch
from tests.waiting import turns

LOST = InstanceLost("expert-0: died", instances=("expert-0",))
NAMES = ("r0", "r1", "r2", "r3")


@pytest.fixture
async def start(checkpoint: Checkpoint, local: LocalExchange) -> AsyncIterator[StartEngine]:
    async with engines(checkpoint, local) as make:
        yield make


def members(plan: StepPlan) -> set[str]:
    return {chunk.request_id for chunk in plan.chunks}


async def two_in_flight(start: StartEngine, **options: float) -> tuple[Running, HeldReceipt, HeldReceipt]:
    """Four streams that decode, in two micro-batches that are both with the experts."""
    running = start(micro_batches=2, **options)
    for name in NAMES:
        running.submit(name, PROMPTS[name])
    await running.until(lambda: all(running.tokens(name) for name in NAMES))
    running.exchange.holds = True
    first, second = await running.exchange.hold(2)
    assert members(first.plan) | members(second.plan) == set(NAMES)
    assert len(first.plan.chunks) == len(second.plan.chunks) == 2
    return running, first, second


async def ends(running: Running, names: tuple[str, ...] = NAMES) -> dict[str, TokenDelta]:
    return {name: await running.end(name) for name in names}


@pytest.mark.parametrize(("micro_batches", "num_blocks"), [(2, 64), (2, 16), (3, 64), (4, 64), (4, 16)])
async def test_tokens_do_not_depend_on_micro_batches(micro_batches: int, num_blocks: int, start: StartEngine) -> None:
    """Whatever the order of answers, and with preemption (16 blocks)."""
    expected = await alone(start)
    running = start(micro_batches=micro_batches, num_blocks=num_blocks)
    running.exchange.holds = True
    async with asyncio.TaskGroup() as tasks:
        answers = tasks.create_task(running.exchange.answer_in_any_order(micro_batches), name="answers")
        for name, prompt in PROMPTS.items():
            running.submit(name, prompt)
        for name, tokens in expected.items():
            await running.end(name)
            assert running.tokens(name) == tokens
        answers.cancel()
    stats = running.engine.stats()
    assert (stats.preemptions > 0) == (num_blocks == 16)
    assert (stats.running, stats.waiting, stats.blocks_used, stats.failed_steps) == (0, 0, 0, 0)
    # Few blocks let fewer requests run than there are micro-batches.
    assert running.exchange.most_held == micro_batches if num_blocks == 64 else running.exchange.most_held > 1


async def test_drawn_tokens_do_not_depend_on_micro_batches(start: StartEngine) -> None:
    drawn: list[list[list[int]]] = []
    for micro_batches in (1, 2, 3):
        running = start(micro_batches=micro_batches)
        for name in NAMES:
            running.submit(name, PROMPTS[name], temperature=0.9, seed=7)
        await ends(running)
        drawn.append([running.tokens(name) for name in NAMES])
    assert drawn[0] == drawn[1] == drawn[2]


async def test_one_goes_on_while_the_other_is_away(start: StartEngine) -> None:
    running, away, here = await two_in_flight(start)
    before = {name: len(running.tokens(name)) for name in NAMES}
    while len(running.tokens(min(members(here.plan)))) < 12:
        running.exchange.answer(here)
        here = next(receipt for receipt in await running.exchange.hold(2) if receipt is not away)
        assert not members(here.plan) & members(away.plan)
    assert all(len(running.tokens(name)) == before[name] for name in members(away.plan))
    assert running.engine.times.overlap_ns > 0
    running.exchange.release()
    await ends(running)


async def test_one_that_fails_does_not_cost_the_other_anything(start: StartEngine) -> None:
    expected = await alone(start)
    running, bad, good = await two_in_flight(start)
    steps = running.engine.times.steps
    running.exchange.answer(bad, LOST)
    running.exchange.answer(good)
    while running.engine.times.steps == steps:  # the other one's step goes on to its end
        for receipt in await running.exchange.hold(2):
            if members(receipt.plan) == members(good.plan):
                running.exchange.answer(receipt)
                break
    running.exchange.release()
    await ends(running)
    assert {name: running.tokens(name) for name in NAMES} == {name: expected[name] for name in NAMES}
    assert running.engine.stats().failed_steps == 1


async def test_both_fail_and_no_token_is_lost(start: StartEngine) -> None:
    expected = await alone(start)
    running, first, second = await two_in_flight(start)
    for receipt in (first, second):
        running.exchange.answer(receipt, LOST)
    again = await running.exchange.hold(2)
    assert all(receipt.plan.attempt > 1 for receipt in again)
    running.exchange.release()
    await ends(running)
    assert {name: running.tokens(name) for name in NAMES} == {name: expected[name] for name in NAMES}
    assert running.engine.stats().failed_steps == 2


async def test_when_the_experts_stay_away_everybody_is_told_once(start: StartEngine) -> None:
    running, first, second = await two_in_flight(start, recovery_timeout_s=0.05)
    running.submit("waits", [5, 6])
    running.exchange.there = False
    for receipt in (first, second):
        running.exchange.answer(receipt, LOST)
    for end in (await ends(running, (*NAMES, "waits"))).values():
        assert (end.finish_reason, end.status, end.code) == ("error", 503, "experts_unavailable")
    running.exchange.release()
    running.exchange.come()
    running.submit("later", [5, 6])
    assert (await running.end("later")).finish_reason == "length"
    assert running.engine.stats().blocks_used == 0


async def test_one_that_always_fails_is_given_up_and_the_other_is_not(start: StartEngine) -> None:
    """The other one's success must not make its requests wait for ever, nor its failure end the other one's."""
    expected = await alone(start)
    running, first, second = await two_in_flight(start, recovery_timeout_s=0.05)
    running.exchange.poison = frozenset(members(first.plan))
    running.exchange.release()
    bad, good = tuple(members(first.plan)), tuple(members(second.plan))
    for end in (await ends(running, bad)).values():
        assert (end.status, end.code) == (503, "experts_unavailable")
    for name, end in (await ends(running, good)).items():
        assert end.finish_reason == "length"
        assert running.tokens(name) == expected[name]


async def test_a_bug_in_one_ends_only_its_requests(start: StartEngine) -> None:
    running, bad, good = await two_in_flight(start)
    running.exchange.answer(bad, ZeroDivisionError("a bug"))
    for end in (await ends(running, tuple(members(bad.plan)))).values():
        assert (end.status, end.code) == (500, "step_failed")
    running.exchange.release()
    for end in (await ends(running, tuple(members(good.plan)))).values():
        assert end.finish_reason == "length"


async def test_a_missing_replica_makes_one_plan_again(start: StartEngine) -> None:
    expected = await alone(start)
    running, first, _ = await two_in_flight(start)
    running.exchange.answer(first, ReplicaMissing("expert-0: stale epoch", instances=("expert-0",)))
    running.exchange.release()
    await ends(running)
    assert running.exchange.waits_for_change == 1
    assert {name: running.tokens(name) for name in NAMES} == {name: expected[name] for name in NAMES}


async def test_cancelled_in_flight_keeps_its_memory_until_its_own_step_has_ended(start: StartEngine) -> None:
    running, first, second = await two_in_flight(start)
    name = min(members(first.plan))
    used = running.engine.stats().blocks_used
    running.engine.cancel(name)
    assert running.engine.stats().blocks_used == used
    running.submit("new", [5, 6])
    told = len(running.tokens(name))
    running.exchange.release()
    rest = tuple(member for member in NAMES if member != name)
    for end in (await ends(running, (*rest, "new"))).values():
        assert end.finish_reason == "length"
    assert len(running.tokens(name)) == told
    assert running.engine.stats().blocks_used == 0
    assert second.answer.done()


async def test_everything_cancelled_in_flight_leaves_nothing(start: StartEngine) -> None:
    running, _, _ = await two_in_flight(start)
    for name in NAMES:
        running.engine.cancel(name)
    running.exchange.release()
    await running.engine.drain(LIMIT_S)
    stats = running.engine.stats()
    assert (stats.running, stats.in_flight, stats.blocks_used) == (0, 0, 0)


async def test_draining_waits_for_both(start: StartEngine) -> None:
    running, _, _ = await two_in_flight(start)
    async with asyncio.TaskGroup() as tasks:
        draining = tasks.create_task(running.engine.drain(LIMIT_S), name="drain")
        await turns()
        assert not draining.done()
        running.exchange.release()
    assert {end.finish_reason for end in (await ends(running)).values()} == {"length"}
    assert running.engine.stats().in_flight == 0


async def test_what_is_away_at_the_drain_limit_ends_by_name(start: StartEngine) -> None:
    running, _, _ = await two_in_flight(start)
    await running.engine.drain(0.01)
    assert {end.code for end in (await ends(running)).values()} == {"draining"}
    running.exchange.release()


async def test_a_cancelled_engine_leaves_no_task(start: StartEngine) -> None:
    running, first, second = await two_in_flight(start)
    running.task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running.task
    assert first.answer.cancelled() and second.answer.cancelled()
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("step[")]


async def test_a_single_stream_is_not_split(start: StartEngine) -> None:
    running = start(micro_batches=4)
    running.exchange.holds = True
    running.submit("a", PROMPTS["r5"])
    for _ in range(8):
        (receipt,) = await running.exchange.hold(1)
        assert members(receipt.plan) == {"a"}
        assert running.engine.micro_batches == 1
        running.exchange.answer(receipt)
    running.exchange.release()
    await running.end("a")


async def test_four_micro_batches_take_four_credits_of_a_link(
    pool: Callable[..., Awaitable[Pool]], config: ModelConfig
) -> None:
    """One dispatch each is all that a micro-batch has on its way to one instance."""
    world = await pool(HALVES)
    for gate in world.gates.values():
        gate.shut()
    given = [batch(3, config.hidden_size, seed=seed) for seed in range(4)]
    receipts = [world.exchange.dispatch(0, *each) for each in given]
    for link in world.exchange.links.values():
        stats = link.stats()
        assert stats.in_flight <= 4
        assert stats.credits >= 60
    for gate in world.gates.values():
        gate.open()
    async with asyncio.timeout(LIMIT_S):
        sums = [(await world.exchange.combine(receipt)).clone() for receipt in reversed(receipts)]
    assert all(torch.isfinite(y_TH).all() for y_TH in sums)
    # The last answer was under way before its dispatch was released; the next frame says so.
    assert all(link.stats().in_flight <= 1 for link in world.exchange.links.values())


def test_turns_tell_computing_from_hiding_from_waiting() -> None:
    times = StepTimes()
    turns = Turns(times)
    turns.begin(100)
    turns.pause(110)  # alone: 10 computed
    turns.begin(115)  # 5 idle
    assert turns.in_flight == 2
    turns.pause(125)  # 10 computed, behind the first one's back
    turns.resume(140)  # 15 idle
    turns.end(142)  # 2 computed, likewise
    turns.resume(150)  # 8 idle
    turns.end(157)  # 7 computed, alone
    turns.begin(200)  # nothing was in flight: neither
    turns.end(201)
    assert (times.compute_ns, times.overlap_ns, times.idle_ns) == (30, 12, 28)
    assert turns.in_flight == 0


def test_the_option_names_the_policy() -> None:
    assert isinstance(policy_for("auto"), AutoMicroBatches)
    assert policy_for("3") == FixedMicroBatches(3)
