"""Micro-batches share the running streams: evenly, in turn, and with no token the worse for it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus.core.batcher import Accept, Batcher, Finish, StepPlan
from janus.core.request import Request
from janus.core.sharing import in_turn, share_of
from janus.errors import Unavailable
from tests.core.batcher_harness import EOS, FakeModel, config, submit


def streams(lengths: list[int], last_steps: list[int] | None = None) -> list[Request]:
    """Requests that decode, with contexts of ``lengths``."""
    made = []
    for index, length in enumerate(lengths):
        request = Request(
            submit(f"r{index}", [1] * (length + 1)), arrival=index + 1, eos_token_ids=[EOS], max_model_len=99, now=0.0
        )
        request.computed = length
        request.last_step = last_steps[index] if last_steps else 0
        made.append(request)
    return made


def names(requests: object) -> list[str]:
    return [request.request_id for request in requests]  # type: ignore[attr-defined]


def running(count: int, **limits: int) -> tuple[Batcher, FakeModel]:
    """``count`` streams that have their first token."""
    batcher = Batcher(config(**{"max_running": 16, "token_budget": 64, "num_blocks": 64, "max_waiting": 16, **limits}))
    model = FakeModel(batcher.config)
    for index in range(count):
        request = submit(f"r{index}", [1 + index % 9], max_tokens=30, ignore_eos=True)
        assert batcher.submit(request, eos_token_ids=[EOS], now=0.0) == [Accept(request.request_id)]
    plan = batcher.plan(0.0)
    assert plan is not None
    batcher.step_done(plan, model.run(plan))
    return batcher, model


@pytest.mark.parametrize(("whole", "share", "part"), [(8, 1, 8), (8, 2, 4), (9, 2, 5), (1, 4, 1), (0, 3, 0)])
def test_parts_cover_the_whole(whole: int, share: int, part: int) -> None:
    assert share_of(whole, share) == part


def test_all_are_taken_when_all_fit() -> None:
    free = streams([5, 1, 3])
    assert in_turn(free, 3) is free


def test_long_and_short_contexts_are_dealt_out_in_turn() -> None:
    free = streams([80, 10, 81, 11, 40, 41, 82, 12])
    ordered = in_turn(free, 4)
    first, rest = ordered[:4], ordered[4:]
    assert (names(first), names(rest)) == (["r0", "r3", "r4", "r6"], ["r1", "r2", "r5", "r7"])
    sums = [sum(request.computed for request in half) for half in (first, rest)]
    assert abs(sums[0] - sums[1]) <= 72, "no more apart than the longest and the shortest"


def test_who_has_waited_longest_comes_first() -> None:
    assert names(in_turn(streams([9, 8, 7, 6, 5], [4, 2, 4, 3, 4]), 3)) == ["r1", "r2", "r3", "r0", "r4"]


def test_an_earlier_request_takes_the_turn_of_a_later_one_that_gets_no_block() -> None:
    batcher, model = running(2, block_size=2, num_blocks=3, max_model_len=6)
    assert batcher._kv.grow(batcher._running[0])  # the last block goes to r0
    turns = []
    for _ in range(6):
        plan = batcher.plan(0.0, share=2)
        assert plan is not None
        turns.append(([chunk.request_id for chunk in plan.chunks], plan.preempted))
        batcher.step_done(plan, model.run(plan))
        batcher.check()
    # r1 is full at its second turn and keeps nobody waiting; when r0 is full too, r1 makes room.
    assert turns == [(["r1"], ()), *[(["r0"], ())] * 3, (["r0"], ("r1",)), (["r1"], ())]


def test_two_micro_batches_take_half_of_the_streams_each() -> None:
    batcher, _ = running(7)
    first, second = batcher.plan(0.0, share=2), batcher.plan(0.0, share=2)
    assert first is not None and second is not None
    assert (len(first.chunks), len(second.chunks)) == (4, 3)
    assert batcher.plan(0.0, share=2) is None
    # Whoever ends first goes on with its own streams; they do not wait for each other.
    batcher.step_done(second, [3] * 3)
    again = batcher.plan(0.0, share=2)
    assert again is not None
    assert [chunk.request_id for chunk in again.chunks] == [chunk.request_id for chunk in second.chunks]


def test_a_prompt_takes_no_more_than_the_share_of_the_budget() -> None:
    batcher, model = running(4, token_budget=17, max_model_len=64)
    batcher.submit(submit("long", [2] * 30, max_tokens=2), eos_token_ids=[EOS], now=0.0)
    first = batcher.plan(0.0, share=2)
    second = batcher.plan(0.0, share=2)
    assert first is not None and second is not None
    assert [len(chunk.token_ids) for chunk in first.chunks] == [1, 1, 7]
    assert [len(chunk.token_ids) for chunk in second.chunks] == [1, 1]
    for plan in (first, second):
        batcher.step_done(plan, model.run(plan))
    assert batcher.plan(0.0, share=2) is not None


def test_streams_that_are_left_over_are_not_taken_for_prompts() -> None:
    batcher, _ = running(6)
    plan = batcher.plan(0.0, share=3)
    assert plan is not None
    assert (len(plan.chunks), plan.num_decode) == (2, 2)


def test_a_failed_micro_batch_leaves_the_other_alone() -> None:
    batcher, model = running(4)
    first, second = batcher.plan(0.0, share=2), batcher.plan(0.0, share=2)
    assert first is not None and second is not None
    sampled = model.run(second)
    assert batcher.step_failed(first, retry=True, now=5.0) == []
    model.spoil(first)
    assert len(batcher.step_done(second, sampled)) == 2
    again = batcher.plan(6.0, share=2)
    assert again is not None
    assert {chunk.request_id for chunk in again.chunks} == {chunk.request_id for chunk in first.chunks}


def test_a_micro_batch_that_keeps_failing_is_seen_beside_one_that_does_not() -> None:
    """The other one's success says nothing about these requests: their time runs on."""
    batcher, model = running(4)
    since: list[float | None] = []
    for now in (5.0, 6.0, 7.0):
        bad, good = batcher.plan(now, share=2), batcher.plan(now, share=2)
        assert bad is not None and good is not None
        if "r1" not in {chunk.request_id for chunk in bad.chunks}:
            bad, good = good, bad
        since.append(bad.failing_since)
        assert good.failing_since is None
        batcher.step_failed(bad, retry=True, now=now)
        batcher.step_done(good, model.run(good))
    assert since == [None, 5.0, 5.0]
    assert batcher.stats().failing_since is None
    last = batcher.plan(8.0)
    assert last is not None and last.failing_since == 5.0
    assert batcher.step_failed(last, retry=True, now=8.0) == []
    ended = [action for action in batcher.abort(Unavailable("lost"), failing_since=5.0) if isinstance(action, Finish)]
    assert {finish.request_id for finish in ended} == {chunk.request_id for chunk in bad.chunks}
    assert batcher.stats().running == 2


@settings(max_examples=80, deadline=None)
@given(count=st.integers(2, 16), share=st.integers(2, 4), ends=st.lists(st.integers(0, 3), max_size=25))
def test_everybody_gets_a_turn_whatever_the_order_of_the_ends(count: int, share: int, ends: list[int]) -> None:
    batcher, model = running(count)
    in_flight: list[StepPlan] = []
    turns = dict.fromkeys((f"r{index}" for index in range(count)), 0)

    def fill() -> None:
        while len(in_flight) < share and (plan := batcher.plan(0.0, share=share)) is not None:
            busy = {chunk.request_id for other in in_flight for chunk in other.chunks}
            chosen = {chunk.request_id for chunk in plan.chunks}
            assert not busy & chosen
            assert len(chosen) <= share_of(count, share)
            in_flight.append(plan)
            for name in chosen:
                turns[name] += 1

    def end(index: int) -> None:
        plan = in_flight.pop(index)
        batcher.step_done(plan, model.run(plan))
        batcher.check()

    for index in ends:
        fill()
        end(index % len(in_flight))
    while in_flight:
        end(0)
    # However far apart they are by now: ended in turn, all go at the same pace.
    turns = dict.fromkeys(turns, 0)
    for _ in range(4 * share):
        fill()
        if len(batcher._requests) < count:
            return
        end(0)
    assert max(turns.values()) - min(turns.values()) <= 1
