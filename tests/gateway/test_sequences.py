"""What the gateway remembers of a sequence: no token twice, none out of order, none missing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from janus.core.sequence import Sequence, TokenGap
from janus.messages.control import SamplingParams, TokenDelta, TokenLogprob


def sequence() -> Sequence:
    return Sequence(request_id="r", prompt_ids=[1, 2], params=SamplingParams(max_tokens=50))


def delta(output: list[int], start: int, end: int) -> TokenDelta:
    logprobs = [TokenLogprob(logprob=-float(i), top_ids=[], top_logprobs=[]) for i in range(start, end)]
    return TokenDelta(request_id="r", index=start, token_ids=output[start:end], logprobs=logprobs)


@given(
    output=st.lists(st.integers(0, 99), max_size=30), steps=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 8)))
)
def test_any_overlapping_deltas_give_every_token_once(output: list[int], steps: list[tuple[int, int]]) -> None:
    known = sequence()
    taken: list[int] = []
    places: list[float] = []
    for back, count in steps:
        start = max(0, len(known.emitted_ids) - back)
        ids, logprobs = known.accept(delta(output, start, min(start + count, len(output))))
        taken += ids
        places += [-entry.logprob for entry in logprobs]
    assert taken == known.emitted_ids == output[: len(taken)]
    assert places == list(range(len(taken)))


def test_a_gap_is_noticed_and_takes_nothing() -> None:
    known = sequence()
    known.accept(delta([7, 8, 9, 10], 0, 1))
    with pytest.raises(TokenGap):
        known.accept(delta([7, 8, 9, 10], 2, 4))
    assert known.emitted_ids == [7]


def test_each_attempt_continues_under_a_name_of_its_own() -> None:
    known = sequence()
    first = known.submit()
    known.accept(delta([7, 8], 0, 2))
    known.attempt += 1
    second = known.submit()
    assert first.request_id != second.request_id
    assert second.prompt_ids == [1, 2]
    assert second.emitted_ids == [7, 8]
    assert known.known_tokens == 4
    assert first.emitted_ids == []
