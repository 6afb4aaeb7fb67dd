"""Streamed text: equal to decoding everything at once, and final from the moment it is shown."""

from __future__ import annotations

from itertools import pairwise

import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from janus.text import Tokenizer

Family = tuple[tokenizers.Tokenizer, Tokenizer]


def pieces_of(tokenizer: Tokenizer, ids: list[int], cuts: list[int]) -> list[str]:
    detokenizer = tokenizer.detokenizer()
    borders = [0, *sorted({cut % (len(ids) + 1) for cut in cuts}), len(ids)]
    pieces = [detokenizer.push(ids[a:b]) for a, b in pairwise(borders)]
    return [*pieces, detokenizer.flush()]


@given(data=st.data(), cuts=st.lists(st.integers(0, 1000), max_size=30))
def test_any_ids_in_any_pieces_decode_as_the_library_does(family: Family, data: st.DataObject, cuts: list[int]) -> None:
    reference, tokenizer = family
    # Two past the vocabulary: models have more logits than the tokenizer has entries.
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 1), max_size=40))
    assert "".join(pieces_of(tokenizer, ids, cuts)) == reference.decode(ids, skip_special_tokens=True)


@given(text=st.text(max_size=60), cuts=st.lists(st.integers(0, 1000), max_size=30))
def test_any_text_comes_back_without_half_a_character(bytes_tokenizer: Tokenizer, text: str, cuts: list[int]) -> None:
    ids = bytes_tokenizer.encode(text)
    pieces = pieces_of(bytes_tokenizer, ids, cuts)
    assert "".join(pieces) == text
    shown = ""
    for piece in pieces:
        shown += piece
        assert text.startswith(shown)


def test_a_character_appears_with_its_last_byte(bytes_tokenizer: Tokenizer) -> None:
    detokenizer = bytes_tokenizer.detokenizer()
    ids = bytes_tokenizer.encode("𝄞")
    assert len(ids) == 4
    assert [detokenizer.push([token_id]) for token_id in ids] == ["", "", "", "𝄞"]


def test_a_character_cut_short_by_the_end_is_one_replacement_character(bytes_tokenizer: Tokenizer) -> None:
    detokenizer = bytes_tokenizer.detokenizer()
    assert detokenizer.push(bytes_tokenizer.encode("ok 𝄞")[:-1]) == "ok "
    assert detokenizer.flush() == "\ufffd"
    assert detokenizer.flush() == ""


def test_work_per_token_does_not_grow_with_the_text(bytes_tokenizer: Tokenizer) -> None:
    """Counted, not timed: a push touches the new token alone."""
    detokenizer = bytes_tokenizer.detokenizer()
    asked: list[int] = []
    token_of = detokenizer._token_of
    detokenizer._token_of = lambda token_id: (asked.append(token_id), token_of(token_id))[1]
    ids = bytes_tokenizer.encode("The quick brown fox. " * 200)
    for token_id in ids:
        detokenizer.push([token_id])
    assert asked == ids
