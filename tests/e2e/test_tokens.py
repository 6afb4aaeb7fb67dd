"""Correct to the token: what a cluster of any m:n generates is what ``transformers`` generates."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.checkpoints import SHAPES
from tests.e2e.client import Answer, Client
from tests.e2e.cluster import Cluster, Spec
from tests.e2e.lab import Lab
from tests.e2e.oracle import NEW_TOKENS, Expected, Oracle

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

TOPOLOGIES = ((1, 1), (1, 3), (2, 2), (3, 1))
TOLERANCE = 1e-4
_CONCURRENT = 16
#: Mixed, so that prefill of some goes on while others decode, in several chunks and across block boundaries.
_LENGTHS = (1, 5, 15, 16, 17, 31, 33, 48, 64, 90, 100, 127, 150, 175, 200, 210)

#: What `make test` covers: all topologies with two models, every model at least once. The rest is marked slow.
#: The first two run on clusters that the tests before have left warm.
FAST = [
    *(("grouped", (2, 2)), ("biased", (3, 1))),
    *(("grouped", topology) for topology in ((1, 1), (1, 3), (3, 1))),
    *(("janus-tiny", topology) for topology in TOPOLOGIES),
    *(("tied", (1, 3)), ("mqa", (2, 2)), ("sparse", (1, 3))),
]
ALL = FAST + [
    (name, topology) for name in ("janus-tiny", *SHAPES) for topology in TOPOLOGIES if (name, topology) not in FAST
]
CASES = [
    pytest.param(name, topology, id=f"{name}-{topology[0]}A{topology[1]}E", marks=() if fast else pytest.mark.slow)
    for name, topology in ALL
    for fast in [(name, topology) in FAST]
]


def spec_of(model: Path, topology: tuple[int, int], **settings: str) -> Spec:
    """Few KV blocks, small steps: requests are prefilled in chunks, and put back when blocks run out."""
    attention, experts = topology
    # 16 requests of these lengths want about 160 blocks at their ends; the longest alone wants 18.
    environment = {
        "JANUS_ATTENTION_KV_BLOCKS": str(max(24, 72 // attention)),
        "JANUS_ATTENTION_MAX_RUNNING": "16",
        "JANUS_ATTENTION_TOKEN_BUDGET": "64",
    } | settings
    return Spec(model=model, attention=attention, experts=experts, environment=tuple(environment.items()))


def prompts_for(oracle: Oracle, *, seed: int = 1) -> list[Expected]:
    """16 prompts of mixed lengths with their answers, the shortest first."""
    source, vocab = random.Random(seed), oracle.model.config.vocab_size
    prompts = [[source.randrange(2, vocab) for _ in range(length)] for length in _LENGTHS * 2]
    expected = sorted(oracle.expect(prompts)[:_CONCURRENT], key=lambda each: len(each.prompt))
    assert len(expected) == _CONCURRENT
    return expected


def check(answer: Answer, expected: Expected, oracle: Oracle) -> None:
    """The tokens are the oracle's, and so is every log-probability among the 20 best."""
    assert answer.status == 200, answer.error
    assert answer.text == expected.text
    assert answer.usage == {
        "prompt_tokens": len(expected.prompt),
        "completion_tokens": NEW_TOKENS,
        "total_tokens": len(expected.prompt) + NEW_TOKENS,
    }
    assert answer.finish_reason == "length"
    chosen = [float(row[token]) for row, token in zip(expected.logprobs, expected.tokens, strict=True)]
    assert answer.logprobs["token_logprobs"] == pytest.approx(chosen, abs=TOLERANCE)
    for step, top in enumerate(answer.logprobs["top_logprobs"]):
        best = expected.logprobs[step].topk(20)
        # By what the tokens read, as JSON has it: of tokens that read the same, the chosen or else the last one.
        by_name = dict(zip(map(oracle.name, best.indices.tolist()), best.values.tolist(), strict=True))
        assert top == pytest.approx(by_name | {oracle.name(expected.tokens[step]): chosen[step]}, abs=TOLERANCE), step


@pytest.mark.parametrize(("name", "topology"), CASES)
async def test_tokens_are_those_of_transformers(
    name: str, topology: tuple[int, int], lab: Lab, connect: Callable[[Cluster], Client]
) -> None:
    oracle = lab.oracle(name)
    expected = prompts_for(oracle)
    cluster = lab.clusters.get(spec_of(lab.model_dir(name), topology))
    client = connect(cluster)

    alone = expected[_CONCURRENT // 2]
    check(await client.complete(alone.prompt, logprobs=20), alone, oracle)

    before = cluster.metrics("attention", "vllm:num_preemptions_total")
    answers = await asyncio.gather(*(client.complete(each.prompt, logprobs=20) for each in expected))
    for answer, each in zip(answers, expected, strict=True):
        check(answer, each, oracle)
    assert cluster.metrics("attention", "vllm:num_preemptions_total") > before, "nothing was preempted"
    cluster.wait_idle()
