"""Batches that do not fit the KV cache: preemption again and again, steps that fail, micro-batches in flight."""

from __future__ import annotations

from hypothesis import event, given, settings
from hypothesis import strategies as st

from janus.core.batcher import Accept, Batcher, StepPlan
from tests.core.batcher_harness import EOS, VOCAB, Client, FakeModel, config, reference, submit

prompts = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=8)
requests = st.lists(st.tuples(prompts, st.integers(1, 16)), min_size=2, max_size=6)


@settings(max_examples=100, deadline=None)
@given(
    wanted=requests,
    block_size=st.integers(1, 4),
    spare_blocks=st.integers(0, 4),
    budget=st.integers(6, 12),
    micro_batches=st.integers(1, 4),
    failures=st.lists(st.booleans(), max_size=30),
)
def test_all_tokens_come_out_right_however_little_fits(
    *,
    wanted: list[tuple[list[int], int]],
    block_size: int,
    spare_blocks: int,
    budget: int,
    micro_batches: int,
    failures: list[bool],
) -> None:
    largest = max(-(-(len(prompt) + count - 1) // block_size) for prompt, count in wanted)
    limits = config(
        max_running=6, token_budget=budget, block_size=block_size, num_blocks=largest + spare_blocks, max_model_len=24
    )
    batcher, model, client = Batcher(limits), FakeModel(limits), Client()
    submitted = [submit(f"r{i}", prompt, max_tokens=count, ignore_eos=True) for i, (prompt, count) in enumerate(wanted)]
    for request in submitted:
        assert batcher.submit(request, eos_token_ids=[EOS], now=0.0) == [Accept(request.request_id)]
        client.expect(request)

    fails = iter(failures)
    in_flight: list[tuple[StepPlan, list[int]]] = []
    # Each request alone takes at most one step per token; preemption and failures cost a bounded number more.
    for _ in range(2000):
        plan = batcher.plan(0.0, share=micro_batches) if len(in_flight) < micro_batches else None
        if plan is not None:
            in_flight.append((plan, model.run(plan)))
        elif in_flight:
            plan, sampled = in_flight.pop(0)
            if next(fails, False):
                model.spoil(plan)
                assert batcher.step_failed(plan, retry=True, now=0.0) == []
            else:
                client.read(batcher.step_done(plan, sampled))
        else:
            break
        batcher.check()
    assert not batcher.has_requests
    assert batcher.stats().blocks_used == 0
    event(f"preempted: {min(batcher.stats().preemptions, 5)}")
    for request in submitted:
        name = request.request_id
        assert (client.tokens[name], client.finished[name].reason) == reference(request, limits.max_model_len)
