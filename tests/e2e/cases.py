"""What the tests here ask of clusters: topologies, prompts with their answers, and how an answer is checked."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.e2e.client import Answer
from tests.e2e.cluster import Spec
from tests.e2e.oracle import NEW_TOKENS, Expected, Oracle

TOPOLOGIES = ((1, 1), (1, 3), (2, 2), (3, 1))
TOLERANCE = 1e-4
CONCURRENT = 16
#: Mixed, so that prefill of some goes on while others decode, in several chunks and across block boundaries.
_LENGTHS = (1, 5, 15, 16, 17, 31, 33, 48, 64, 90, 100, 127, 150, 175, 200, 210)
#: Of "grouped" every token is a word of its own; of "biased" every token ends inside a character.
NAMED, TORN = ("grouped", (2, 2)), ("biased", (3, 1))


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
    expected = sorted(oracle.expect(prompts)[:CONCURRENT], key=lambda each: len(each.prompt))
    assert len(expected) == CONCURRENT
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
        wanted = dict(zip(map(oracle.name, best.indices.tolist()), best.values.tolist(), strict=True))
        wanted[oracle.name(expected.tokens[step])] = chosen[step]
        # Rounding may let the last of the 20 and the next one change places.
        last = float(best.values[-1])
        apart = {name: abs(top.get(name, last) - wanted.get(name, last)) for name in top.keys() | wanted.keys()}
        assert max(apart.values()) <= TOLERANCE, (step, apart)
