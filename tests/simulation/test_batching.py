"""Steps that are skipped leave the batcher as it would be, had each been planned and computed."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from janus.core.batcher import Action, Batcher, BatcherConfig, Emit
from janus.core.request import Finish
from janus.messages.control import SamplingParams, Submit
from janus.simulation.batching import SteadyBatcher

CONFIG = BatcherConfig(max_running=4, token_budget=8, block_size=4, num_blocks=24, max_model_len=64, max_waiting=100)
Wanted = tuple[int, int]


def submit(batcher: Batcher, index: int, prompt: int, output: int) -> list[Action]:
    params = SamplingParams(max_tokens=output, ignore_eos=True)
    request = Submit(request_id=f"r{index}", prompt_ids=[0] * prompt, params=params)
    return batcher.submit(request, eos_token_ids=(), now=0.0)


def step(batcher: Batcher) -> list[Action] | None:
    plan = batcher.plan(0.0)
    return None if plan is None else batcher.step_done(plan, [view.position for view in plan.sampling])


def state(batcher: Batcher) -> object:
    batcher.check()
    live = [
        (r.request_id, r.tokens, r.output_ids, r.computed, len(r.blocks), r.capacity, r.last_step, r.row < 0)
        for r in (*batcher._running, *batcher._waiting)
    ]
    return live, batcher.stats()


def tokens(actions: list[Action]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for action in actions:
        if isinstance(action, Emit):
            mine = found.setdefault(action.delta.request_id, [])
            assert not mine or mine[-1] + 1 == action.delta.index
            mine += action.delta.token_ids
    return found


@given(
    requests=st.lists(st.tuples(st.integers(1, 20), st.integers(1, 30)), min_size=1, max_size=8),
    blocks=st.integers(14, 40),
    before=st.integers(0, 12),
)
def test_skipping_is_computing(requests: list[Wanted], blocks: int, before: int) -> None:
    config = replace(CONFIG, num_blocks=blocks)
    quick, slow = SteadyBatcher(config), SteadyBatcher(config)
    for batcher in (quick, slow):
        for index, (prompt, output) in enumerate(requests):
            submit(batcher, index, prompt, output)
        for _ in range(before):
            step(batcher)
    done: list[Action] = []
    for _ in range(1000):
        steady = quick.steady_steps()
        if not steady:
            mine, other = step(quick), step(slow)
            assert mine == other
            if mine is None:
                break
            done += mine
            continue
        skipped = quick.run_steady(steady)
        computed: list[Action] = []
        for _ in range(steady):
            actions = step(slow)
            assert actions is not None
            assert not [action for action in actions if isinstance(action, Finish)]
            computed += actions
        assert tokens(skipped) == tokens(computed)
        assert state(quick) == state(slow)
        done += skipped
    assert state(quick) == state(slow)
    assert not quick.has_requests


def test_a_long_answer_alone_is_skipped_up_to_its_last_token() -> None:
    batcher = SteadyBatcher(CONFIG)
    submit(batcher, 0, 3, 50)
    assert batcher.steady_steps() == 0  # the prompt comes first
    step(batcher)
    assert batcher.steady_steps() == 48
    batcher.run_steady(48)
    assert batcher.steady_steps() == 0
    assert [type(action).__name__ for action in step(batcher) or ()] == ["Emit", "Finish"]


def test_nothing_is_skipped_past_a_request_that_could_start() -> None:
    batcher = SteadyBatcher(CONFIG)
    submit(batcher, 0, 3, 50)
    step(batcher)
    submit(batcher, 1, 3, 50)
    assert batcher.steady_steps() == 0
    for index in (2, 3, 4):
        submit(batcher, index, 3, 10)
    step(batcher)
    # Four run, the fifth has no row until one of them ends.
    step(batcher)
    assert batcher.stats().waiting == 1
    assert 0 < batcher.steady_steps() < 10
