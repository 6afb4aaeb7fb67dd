"""Stop strings never leak, not even in part, wherever the pieces are cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from janus.text import StopMatcher

TEXT = st.text(alphabet="ab\n", max_size=40)
STOPS = st.lists(st.text(alphabet="ab\n", min_size=1, max_size=5), max_size=5)


def reference(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The definition, slowly: the earliest end wins, then the longest stop string."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            longest = max(ending, key=len)
            return text[: end - len(longest)], longest
    return text, None


def longest_beginning(text: str, stops: list[str]) -> int:
    return max((n for stop in stops for n in range(len(stop)) if text.endswith(stop[:n])), default=0)


@given(text=TEXT, stops=STOPS, cuts=st.lists(st.integers(0, 40), max_size=12))
@example(text="aab", stops=["aaa", "ab"], cuts=[1, 2])
@example(text="abab", stops=["babb", "ab"], cuts=[])
def test_shown_text_is_the_reference_and_nothing_more_is_held_than_needed(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    matcher = StopMatcher(stops)
    expected, expected_stop = reference(text, stops)
    borders = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    shown = ""
    for start, end in pairwise(borders):
        shown += matcher.push(text[start:end])
        assert expected.startswith(shown)
        if matcher.matched is None:
            assert len(text[:end]) - len(shown) == longest_beginning(text[:end], stops)
    assert matcher.matched == expected_stop
    assert shown + matcher.flush() == expected


@given(text=st.text(max_size=30), stops=st.lists(st.text(min_size=1, max_size=4), max_size=4))
def test_arbitrary_unicode_character_by_character(text: str, stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    shown = "".join(matcher.push(char) for char in text) + matcher.flush()
    assert (shown, matcher.matched) == reference(text, stops)


def test_nothing_comes_out_after_a_match() -> None:
    matcher = StopMatcher(["END"])
    assert matcher.push("one EN") == "one "
    assert matcher.push("D two") == ""
    assert matcher.push("three") == ""
    assert matcher.flush() == ""
    assert matcher.matched == "END"


def test_a_false_alarm_is_released() -> None:
    matcher = StopMatcher(["\n\nHuman:"])
    assert [matcher.push(piece) for piece in ("yes.\n", "\nHu", "mility")] == ["yes.", "", "\n\nHumility"]


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        StopMatcher(["a", ""])
