"""Sampling with a seed depends on prompt, parameters and seed alone; bfloat16 is as near as ``transformers`` is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.e2e.cases import check, prompts_for, spec_of
from tests.e2e.client import Client
from tests.e2e.cluster import Cluster
from tests.e2e.lab import Lab
from tests.e2e.oracle import Oracle

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

#: One of each kind, and all of them together.
_SAMPLINGS: tuple[dict[str, Any], ...] = (
    {"temperature": 1.0, "seed": 7},
    {"temperature": 0.7, "top_p": 0.9, "seed": 1},
    {"temperature": 1.3, "top_k": 20, "seed": 2},
    {"temperature": 1.0, "min_p": 0.05, "seed": 3},
    {"temperature": 0.9, "repetition_penalty": 1.2, "seed": 4},
    {"temperature": 1.0, "presence_penalty": 0.8, "frequency_penalty": 0.4, "seed": -5},
    {"temperature": 0.8, "top_p": 0.95, "top_k": 50, "min_p": 0.01, "repetition_penalty": 1.1, "seed": 2**40},
    {"temperature": 0.0, "repetition_penalty": 1.5},
)


async def _sampled(client: Client, prompts: Sequence[Sequence[int]]) -> tuple[list[str], list[str]]:
    """The texts of every sampling, one request after the other and all at once."""
    asked = [(prompts[index], sampling) for index, sampling in enumerate(_SAMPLINGS)]
    alone = [(await client.complete(prompt, **sampling)).text for prompt, sampling in asked]
    others = [client.complete(prompt, max_tokens=90) for prompt in prompts]
    together = await asyncio.gather(*(client.complete(prompt, **sampling) for prompt, sampling in asked), *others)
    return alone, [answer.text for answer in together[: len(asked)]]


async def test_a_seed_gives_the_same_tokens_wherever_they_are_computed(
    lab: Lab, connect: Callable[[Cluster], Client]
) -> None:
    expected = prompts_for(lab.oracle("grouped"))
    prompts = [each.prompt for each in expected]
    small = spec_of(lab.model_dir("grouped"), (1, 1))
    monolithic = replace(small, monolithic=True)
    texts: dict[str, tuple[list[str], list[str]]] = {}
    for spec in (small, monolithic, spec_of(lab.model_dir("grouped"), (2, 2))):
        cluster = lab.clusters.get(spec)
        client = connect(cluster)
        texts[str(spec)] = await _sampled(client, prompts)
        if spec is monolithic:  # the same engine without the exchange: the same tokens
            answers = await asyncio.gather(*(client.complete(each.prompt, logprobs=20) for each in expected))
            for answer, each in zip(answers, expected, strict=True):
                check(answer, each, lab.oracle("grouped"))
        cluster.wait_idle()
    first, _ = next(iter(texts.values()))
    assert len({*first}) == len(first), "sampling makes no difference"
    for where, (alone, together) in texts.items():
        assert alone == first, where
        assert together == first, where


async def test_without_a_seed_answers_differ(lab: Lab, connect: Callable[[Cluster], Client]) -> None:
    cluster = lab.clusters.get(replace(spec_of(lab.model_dir("grouped"), (1, 1)), monolithic=True))
    client = connect(cluster)
    answers = await asyncio.gather(*(client.complete([5, 6, 7], temperature=1.0) for _ in range(4)))
    assert len({answer.text for answer in answers}) == 4


async def test_bfloat16_is_as_near_as_transformers_is_to_itself(lab: Lab, connect: Callable[[Cluster], Client]) -> None:
    """Two yardsticks: how much the log-probabilities of ``transformers`` in bfloat16 differ between batched, alone and
    token by token; and how far they are from those of the same weights in float32."""
    directory, exact = lab.model_dir("janus-tiny"), lab.oracle("janus-tiny")
    prompts = [each.prompt for each in prompts_for(exact)][::2]
    client = connect(lab.clusters.get(replace(spec_of(directory, (1, 3)), dtype="bfloat16")))
    answers = await asyncio.gather(*(client.complete(prompt, logprobs=0) for prompt in prompts))

    ids = {exact.name(token): token for token in range(exact.model.config.vocab_size)}
    tokens = [[ids[name] for name in answer.logprobs["tokens"]] for answer in answers]
    assert [exact.decode(row) for row in tokens] == [answer.text for answer in answers]

    half = Oracle(directory, torch.bfloat16)
    ours = torch.tensor([answer.logprobs["token_logprobs"] for answer in answers])
    alone = _chosen([half.score(prompt, row)[0] for prompt, row in zip(prompts, tokens, strict=True)], tokens)
    batched = _chosen(half.score_batched(prompts, tokens), tokens)
    stepwise = _chosen([half.score_stepwise(*pair) for pair in zip(prompts, tokens, strict=True)], tokens)
    truth = _chosen([exact.score(prompt, row)[0] for prompt, row in zip(prompts, tokens, strict=True)], tokens)

    def apart(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """Mean, 99th percentile and maximum of the difference."""
        difference = (one - other).abs().flatten()
        return torch.stack([difference.mean(), difference.quantile(0.99), difference.max()])

    itself = torch.maximum(apart(batched, alone), apart(stepwise, alone))
    assert itself.min() > 0, "the yardstick measures nothing"
    assert (apart(ours, stepwise) <= 2 * itself).all(), (apart(ours, stepwise), itself)
    assert (apart(ours, truth)[:2] <= 1.2 * apart(stepwise, truth)[:2]).all(), (
        apart(ours, truth),
        apart(stepwise, truth),
    )


def _chosen(logits: Sequence[torch.Tensor], tokens: Sequence[Sequence[int]]) -> torch.Tensor:
    """Log-probabilities [rows, tokens] of the tokens that were chosen."""
    return torch.stack(
        [
            row.log_softmax(-1)[torch.arange(len(own)), torch.tensor(own)]
            for row, own in zip(logits, tokens, strict=True)
        ]
    )
