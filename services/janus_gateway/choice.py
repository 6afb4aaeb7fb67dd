"""One choice of an answer: tokens in, final text out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from janus.messages.control import TokenLogprob
from janus.text import StopMatcher, Tokenizer
from janus_gateway.backend import News
from janus_gateway.spec import GenerationSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A step forward of one choice."""

    index: int
    #: Text that will not change any more; empty when the tokens end inside a character or a possible stop string.
    text: str
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: Literal["stop", "length"] | None = None


class Choice:
    """Detokenizes one sequence and looks for stop strings. The text is the same however the tokens arrive."""

    def __init__(self, index: int, spec: GenerationSpec, tokenizer: Tokenizer, *, echo: str = "") -> None:
        self.index = index
        #: Generated tokens, a final stop token included.
        self.tokens = 0
        self.finish_reason: Literal["stop", "length"] | None = None
        self._detokenizer = tokenizer.detokenizer()
        self._stops = StopMatcher(spec.stop) if spec.stop else None
        self._min_tokens = spec.params.min_tokens
        self._prefix = echo

    @property
    def ended_by_stop_string(self) -> bool:
        """Whether generation goes on behind the end of this choice and has to be stopped."""
        return self._stops is not None and self._stops.matched is not None

    def take(self, news: News) -> Piece:
        """Take the next tokens; after the end, nothing more comes out."""
        if self.finish_reason is not None:
            return Piece(index=self.index, text="")
        text, self._prefix = self._prefix, ""
        if self._stops is None:
            taken = len(news.token_ids)
            text += self._detokenizer.push(news.token_ids)
            self.tokens += taken
        else:
            taken = 0
            for token_id in news.token_ids:  # one by one, to count no token behind the stop string
                text += self._push(self._stops, token_id)
                taken += 1
                if self._stops.matched is not None:
                    self.finish_reason = "stop"
                    break
        if self.finish_reason is None and news.finish_reason is not None:
            self.finish_reason = news.finish_reason
            self.tokens += news.stop_token_id is not None
            text += self._rest()
        return Piece(
            index=self.index,
            text=text,
            token_ids=news.token_ids[:taken],
            logprobs=news.logprobs[:taken],
            finish_reason=self.finish_reason,
        )

    def _push(self, stops: StopMatcher, token_id: int) -> str:
        self.tokens += 1
        text = self._detokenizer.push((token_id,))
        # Stop strings count from the first token after min_tokens, as stop tokens do.
        return text if self.tokens <= self._min_tokens else stops.push(text)

    def _rest(self) -> str:
        rest = self._detokenizer.flush()
        if self._stops is None:
            return rest
        rest = self._stops.push(rest)
        if self._stops.matched is not None:
            self.finish_reason = "stop"
            return rest
        return rest + self._stops.flush()
