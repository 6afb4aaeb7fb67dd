"""Answers are spoiled in a known way; the judgement must say in which."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from janus.chaos.judge import Verdict, judge

#: Every token another one: what is missing can be told from what is not.
UNLIKE = [f"t{number}" for number in range(60)]
answers = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=60)


@given(answers)
def test_the_same_answer_is_right(answer: list[str]) -> None:
    assert judge(answer, answer, whole=True) == Verdict()


@given(at=st.integers(0, 59), size=st.integers(1, 20))
def test_tokens_left_out_are_lost(at: int, size: int) -> None:
    size = min(size, 60 - at)
    verdict = judge(UNLIKE, UNLIKE[:at] + UNLIKE[at + size :], whole=True)
    assert verdict == Verdict(lost=size, first=at)


@given(at=st.integers(1, 60), size=st.integers(1, 20))
def test_tokens_that_come_again_are_repeated(at: int, size: int) -> None:
    size = min(size, at)
    verdict = judge(UNLIKE, UNLIKE[:at] + UNLIKE[at - size : at] + UNLIKE[at:], whole=True)
    assert verdict == Verdict(repeated=size, first=at)


@given(at=st.sets(st.integers(0, 59), min_size=1, max_size=10))
def test_other_tokens_are_changed(at: set[int]) -> None:
    spoiled = ["other" if index in at else token for index, token in enumerate(UNLIKE)]
    assert judge(UNLIKE, spoiled, whole=True) == Verdict(changed=len(at), first=min(at))


def test_from_a_change_on_every_token_may_differ() -> None:
    verdict = judge(UNLIKE, UNLIKE[:40] + ["x"] * 20, whole=True)
    assert verdict == Verdict(changed=20, first=40)


@given(length=st.integers(0, 59))
def test_a_broken_stream_has_lost_nothing_that_its_client_was_not_told(length: int) -> None:
    assert judge(UNLIKE, UNLIKE[:length], whole=False) == Verdict(undelivered=60 - length)


def test_tokens_beyond_the_end_are_wrong() -> None:
    assert judge(UNLIKE, [*UNLIKE, "more"], whole=True) == Verdict(changed=1, first=60)
    assert judge(UNLIKE, [*UNLIKE, UNLIKE[-1]], whole=True) == Verdict(repeated=1, first=60)


def test_a_gap_and_a_repetition_are_both_seen() -> None:
    got = UNLIKE[:10] + UNLIKE[13:30] + UNLIKE[28:]
    assert judge(UNLIKE, got, whole=True) == Verdict(lost=3, repeated=2, first=10)


@given(expected=answers, got=answers, whole=st.booleans())
def test_only_the_right_answer_is_right(expected: list[str], got: list[str], whole: bool) -> None:
    verdict = judge(expected, got, whole=whole)
    begins = got == expected[: len(got)]
    assert verdict.right == (got == expected if whole else begins)
    assert (verdict.first is None) == verdict.right
