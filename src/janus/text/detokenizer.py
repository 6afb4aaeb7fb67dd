"""Token ids to text, as they come."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from janus.text.decoders import Stage


class Detokenizer:
    """The text of one growing token sequence.

    What ``push`` has returned never changes: a character whose bytes are not all there yet is held back, and so is
    anything else that a later token could still alter. ``push`` over all tokens plus ``flush`` equals decoding the
    whole sequence at once, however the tokens were cut into calls. Cost is O(1) per token, amortised.
    """

    __slots__ = ("_stages", "_token_of")

    def __init__(self, token_of: Callable[[int], str | None], stages: Sequence[Stage]) -> None:
        """``token_of`` gives a token's string, or None for one without text (special, or outside the vocabulary)."""
        self._token_of = token_of
        self._stages = stages

    def push(self, token_ids: Iterable[int]) -> str:
        """Take the next tokens; return the text that is now final (possibly empty)."""
        text = ""
        for token_id in token_ids:
            token = self._token_of(token_id)
            if token is not None:
                text += self._run([token], 0)
        return text

    def flush(self) -> str:
        """The sequence has ended: return the rest, incomplete characters as U+FFFD."""
        return "".join(self._run(stage.flush(), i + 1) for i, stage in enumerate(self._stages))

    def _run(self, tokens: list[str], first_stage: int) -> str:
        for stage in self._stages[first_stage:]:
            tokens = [out for token in tokens for out in stage.feed(token)]
        return "".join(tokens)
