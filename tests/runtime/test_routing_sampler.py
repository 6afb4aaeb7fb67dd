"""Sampling of the router's choices: whole tokens, never two steps in one, few of many, and what was seen is told."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator

import numpy as np
import pytest
import torch

from janus.core.activations import ActivationWindow
from janus.exchange.local import LocalExchange
from janus.messages.control import RoutingSample
from janus.model.checkpoint import Checkpoint
from janus.runtime.routing_sampler import MAX_ROWS, RoutingSampler, SampledRows
from tests.runtime.attention_harness import PROMPTS, StartEngine, engines

LAYERS, TOP_K = 3, 2


@pytest.fixture
async def start(checkpoint: Checkpoint, local: LocalExchange) -> AsyncIterator[StartEngine]:
    async with engines(checkpoint, local) as make:
        yield make


def add_layer(sampled: SampledRows, layer: int, first: int, tokens: int) -> None:
    """Route the step's tokens, numbered from ``first``: each one's experts tell its number and the layer."""
    numbers = torch.arange(first, first + tokens, dtype=torch.int32)[:, None] * LAYERS + layer
    ids = torch.cat([numbers, numbers + 30_000], dim=1)
    sampled.add(ids if first % 2 else sampled.of(ids))  # both ways


def step(sampler: RoutingSampler, first: int, tokens: int) -> bool:
    """One step of tokens numbered from ``first``; returns whether any was sampled."""
    sampled = sampler.begin(tokens)
    if sampled is None:
        return False
    for layer in range(LAYERS):
        add_layer(sampled, layer, first, tokens)
    sampler.keep(sampled)
    return True


def ids_of(sample: RoutingSample) -> np.ndarray:
    shape = (sample.layers, sample.tokens, sample.top_k)
    return np.frombuffer(sample.expert_ids, dtype="<u2").reshape(shape)


def numbers_of(sample: RoutingSample) -> list[int]:
    """The numbers of the sampled tokens; every layer must speak of the same ones."""
    ids = ids_of(sample).astype(int)
    numbers = ids[0, :, 0] // LAYERS
    for layer in range(LAYERS):
        np.testing.assert_array_equal(ids[layer, :, 0], numbers * LAYERS + layer)
        np.testing.assert_array_equal(ids[layer, :, 1], ids[layer, :, 0] + 30_000)
    return list(numbers.tolist())


def test_while_there_are_few_all_tokens_are_sampled() -> None:
    sampler = RoutingSampler(64)
    assert sampler.take() is None
    first = 0
    for tokens in (1, 3, 8, 2):
        assert step(sampler, first, tokens)
        first += tokens
    sample = sampler.take()
    assert sample is not None
    assert numbers_of(sample) == list(range(14))
    assert (sample.layers, sample.top_k, sample.seen) == (LAYERS, TOP_K, 14)
    assert sampler.take() is None


@pytest.mark.parametrize("tokens", [1, 7, 64, 512])
def test_of_many_tokens_about_as_many_as_wanted_are_sampled_evenly(tokens: int) -> None:
    sampler, rows, seen, sampled_steps = RoutingSampler(64, seed=3), Counter[int](), 0, 0
    steps, reports = 20_000 // tokens, 20
    for report in range(reports):
        for _ in range(steps):
            sampled_steps += step(sampler, 0, tokens)
        sample = sampler.take()
        assert sample is not None and sample.tokens <= 128
        seen += sample.seen
        if report:  # by then it knows how many there are
            rows.update(numbers_of(sample))
    # What came after the last sampled step is for the next report.
    assert 0 <= steps * tokens * reports - seen <= 2 * 20_000 / 64 + tokens
    assert 0.75 * 64 <= rows.total() / (reports - 1) <= 1.25 * 64
    # A fixed gap would meet the same rows of every batch: here each half of the batch has its part.
    if tokens > 1:
        half = sum(count for row, count in rows.items() if row < tokens // 2) / rows.total()
        assert half == pytest.approx(tokens // 2 / tokens, abs=0.1)
    if tokens < 20:
        assert sampled_steps < steps * reports / 10  # the other steps cost next to nothing


def test_a_long_prompt_is_no_longer_for_being_sampled() -> None:
    sampler = RoutingSampler(1000)
    step(sampler, 0, 4096)
    sample = sampler.take()
    assert sample is not None
    assert sample.seen == 4096
    numbers = numbers_of(sample)
    assert numbers == [4096 * i // MAX_ROWS for i in range(MAX_ROWS)]


def test_what_is_kept_is_bounded() -> None:
    sampler = RoutingSampler(16)
    for index in range(1000):
        step(sampler, index, 1)
    sample = sampler.take()
    assert sample is not None
    assert (sample.tokens, sample.seen) == (32, 1000)


def test_steps_that_overlap_do_not_mix_and_failed_ones_leave_nothing() -> None:
    sampler, source = RoutingSampler(256), random.Random(5)
    first, open_steps = 0, []
    expected: list[int] = []
    for _ in range(40):
        tokens = source.randint(1, 4)
        sampled = sampler.begin(tokens)
        assert sampled is not None
        open_steps.append((sampled, first, tokens, [0]))
        first += tokens
        while open_steps and source.random() < 0.85:
            sampled, begun, count, layer = source.choice(open_steps)
            if layer[0] == LAYERS:
                open_steps.remove((sampled, begun, count, layer))
                if source.random() < 0.8:
                    sampler.keep(sampled)
                    expected += range(begun, begun + count)
                continue  # else it failed
            add_layer(sampled, layer[0], begun, count)
            layer[0] += 1
    sample = sampler.take()
    assert sample is not None
    assert numbers_of(sample) == expected
    assert len(expected) > 10


def test_a_rate_of_zero_samples_nothing() -> None:
    sampler = RoutingSampler(0)
    assert not any(step(sampler, 0, 4096) for _ in range(100))
    assert sampler.take() is None
    assert not sampler.pending


@pytest.mark.parametrize("micro_batches", [1, 3])
async def test_the_engine_samples_what_the_model_routes(
    start: StartEngine, checkpoint: Checkpoint, micro_batches: int
) -> None:
    """The same tokens in whatever company have the same experts: so the counts are those of each request alone."""
    config = checkpoint.config

    async def counts(batches: int, *, together: bool) -> np.ndarray:
        window = ActivationWindow(config.num_moe_layers, config.num_experts, config.top_k)
        sampler = RoutingSampler(4096, max_rows=16)  # all of them
        running = start(micro_batches=batches, routing=sampler)
        names = list(PROMPTS)
        for name in names:
            running.submit(name, PROMPTS[name])
            if not together:
                await running.end(name)
        for name in names:
            await running.end(name)
        sample = sampler.take()
        assert sample is not None
        # The last token of a request is never computed.
        assert sample.tokens == sample.seen == sum(len(prompt) + 19 for prompt in PROMPTS.values())
        window.add(sample)
        activity = window.activity()
        assert activity is not None
        return activity.counts

    alone = await counts(1, together=False)
    assert (alone.sum(axis=1) == sum(len(prompt) + 19 for prompt in PROMPTS.values()) * config.top_k).all()
    np.testing.assert_array_equal(await counts(micro_batches, together=True), alone)
