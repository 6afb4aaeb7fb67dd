"""Budgets of the decisions on the token path, in CPU time; the best of many runs counts, for others only add to it."""

from __future__ import annotations

import time
import timeit

import numpy as np

from janus.core.batcher import Batcher, BatcherConfig
from janus.core.placement import static_placement
from janus.core.scheduling import static
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


def test_static_scheduling_of_64_tokens_costs_less_than_30_us() -> None:
    placement = static_placement(
        num_layers=4, num_experts=160, instances=tuple(f"expert-{i}" for i in range(16)), slots_per_instance=16
    )
    topk_ids = np.random.default_rng(0).integers(0, 160, (64, 8))
    best = (
        min(timeit.repeat(lambda: static(topk_ids, placement, 1), timer=time.process_time, number=50, repeat=20)) / 50
    )
    assert best < 30e-6
