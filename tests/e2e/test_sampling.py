"""Sampling with a seed depends on prompt, parameters and seed alone; bfloat16 is as near as ``transformers`` is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.e2e.client import Client
from tests.e2e.cluster import Cluster
from tests.e2e.lab import Lab
from tests.e2e.oracle import Oracle
from tests.e2e.test_tokens import check, prompts_for, spec_of
from tests.e2e.vocabularies import named_ids

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
    """The yardstick: how far the log-probabilities of ``transformers`` move when the same rows are batched."""
    directory = lab.model_dir("grouped")
    spec = replace(spec_of(directory, (1, 3)), dtype="bfloat16")
    prompts = [each.prompt for each in prompts_for(lab.oracle("grouped"))]
    client = connect(lab.clusters.get(spec))
    answers = await asyncio.gather(*(client.complete(prompt, logprobs=0) for prompt in prompts))

    reference = Oracle(directory, torch.bfloat16)
    tokens = [named_ids(answer.text) for answer in answers]
    alone = [_chosen(reference.score(prompt, ids)[0], ids) for prompt, ids in zip(prompts, tokens, strict=True)]
    batched = [_chosen(row, ids) for row, ids in zip(reference.score_batched(prompts, tokens), tokens, strict=True)]
    ours = [torch.tensor(answer.logprobs["token_logprobs"]) for answer in answers]
    itself = (torch.stack(batched) - torch.stack(alone)).abs()
    difference = (torch.stack(ours) - torch.stack(alone)).abs()
    assert itself.max() > 0, "the yardstick measures nothing"
    assert difference.mean() <= 1.5 * itself.mean(), (difference.mean(), itself.mean())
    assert difference.max() <= 1.5 * itself.max(), (difference.max(), itself.max())


def _chosen(logits: torch.Tensor, tokens: Sequence[int]) -> torch.Tensor:
    return logits.log_softmax(-1)[torch.arange(len(tokens)), torch.tensor(tokens)]
