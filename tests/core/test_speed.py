"""Budgets of the decisions on the token path, in CPU time; the best of many runs counts, for others only add to it."""

from __future__ import annotations

import time

from janus.core.batcher import Batcher, BatcherConfig
from tests.core.batcher_harness import EOS, submit

STREAMS = 64


def test_a_decode_step_of_64_streams_costs_less_than_400_us_of_decisions() -> None:
    batcher = Batcher(
        BatcherConfig(
            max_running=STREAMS,
            token_budget=4096,
            block_size=16,
            num_blocks=4096,
            max_model_len=1024,
            max_waiting=STREAMS,
        )
    )
    for index in range(STREAMS):
        request = submit(f"r{index}", [1] * (16 + index), max_tokens=300, ignore_eos=True)
        batcher.submit(request, eos_token_ids=[EOS], now=0.0)
    seconds = []
    while batcher.has_requests:
        started = time.process_time()
        plan = batcher.plan(0.0)
        planned = time.process_time()
        assert plan is not None
        sampled = [5] * len(plan.sampling)
        sampled_at = time.process_time()
        batcher.step_done(plan, sampled)
        if plan.num_decode == STREAMS:
            seconds.append(time.process_time() - sampled_at + planned - started)
    assert len(seconds) > 200
    assert sorted(seconds)[len(seconds) // 10] < 400e-6
