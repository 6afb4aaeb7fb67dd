"""Ranges of the sampling parameters."""

from __future__ import annotations

import math
from typing import Any

import pytest

from janus.core.sampling import MAX_STOP_TOKEN_IDS, validate
from janus.errors import InvalidRequest
from janus.messages.control import SamplingParams

VOCAB = 100

GOOD: list[dict[str, Any]] = [
    {},
    {"temperature": 0.0},
    {"temperature": 100},
    {"top_p": 1e-9},
    {"top_p": 1},
    {"top_k": 0},
    {"top_k": VOCAB + 1},
    {"min_p": 0.0},
    {"min_p": 1.0},
    {"presence_penalty": -2.0, "frequency_penalty": 2.0},
    {"repetition_penalty": 0.1},
    {"max_tokens": 1, "min_tokens": 1},
    {"seed": -(2**63)},
    {"seed": 2**63 - 1},
    {"logprobs": 0},
    {"logprobs": 20},
    {"stop_token_ids": [0, VOCAB - 1]},
]

BAD: list[tuple[str, Any]] = [
    ("temperature", -0.1),
    ("temperature", 100.1),
    ("temperature", math.nan),
    ("temperature", math.inf),
    ("temperature", True),
    ("temperature", "1"),
    ("top_p", 0.0),
    ("top_p", 1.01),
    ("top_p", math.nan),
    ("top_k", -1),
    ("top_k", 2**31),
    ("top_k", 1.5),
    ("min_p", -0.1),
    ("min_p", 1.1),
    ("presence_penalty", -2.1),
    ("frequency_penalty", 2.1),
    ("frequency_penalty", -math.inf),
    ("repetition_penalty", 0.0),
    ("repetition_penalty", -1.0),
    ("repetition_penalty", math.inf),
    ("max_tokens", 0),
    ("max_tokens", 2**31),
    ("min_tokens", -1),
    ("min_tokens", 17),
    ("seed", 2**63),
    ("seed", 0.5),
    ("logprobs", -1),
    ("logprobs", 21),
    ("logprobs", True),
    ("stop_token_ids", [VOCAB]),
    ("stop_token_ids", [-1]),
    ("stop_token_ids", [0] * (MAX_STOP_TOKEN_IDS + 1)),
]


@pytest.mark.parametrize("values", GOOD, ids=str)
def test_values_in_range_pass(values: dict[str, Any]) -> None:
    validate(SamplingParams(**values), VOCAB)


@pytest.mark.parametrize(("name", "value"), BAD, ids=lambda value: str(value)[:20])
def test_values_out_of_range_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        validate(SamplingParams(**{name: value}), VOCAB)
    assert caught.value.param == name
    assert caught.value.status == 400
    assert caught.value.message.startswith(name)
    assert any(word in caught.value.message for word in ("give", "lower"))


def test_messages_say_what_is_allowed() -> None:
    with pytest.raises(InvalidRequest, match=r"top_p is 0.0; give a number above 0 to 1.0 \(1 is off\)"):
        validate(SamplingParams(top_p=0.0), VOCAB)
    with pytest.raises(InvalidRequest, match="stop_token_ids is 100; give an integer from 0 to 99"):
        validate(SamplingParams(stop_token_ids=[100]), VOCAB)
