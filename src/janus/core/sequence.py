"""One sequence as the gateway remembers it: prompt and emitted tokens, so that it outlives its attention instance."""

from __future__ import annotations

from dataclasses import dataclass, field

from janus.messages.control import SamplingParams, Submit, TokenDelta, TokenLogprob

#: A sequence that has lost its instance this often is given up: it may be what kills them.
MAX_ATTEMPTS = 4


class TokenGap(Exception):
    """A delta begins behind the tokens that are here: some were lost on the way."""


@dataclass(slots=True, kw_only=True, eq=False)
class Sequence:
    """Pure bookkeeping of one sequence over all attempts."""

    request_id: str
    prompt_ids: list[int]
    params: SamplingParams
    emitted_ids: list[int] = field(default_factory=list)
    attempt: int = 0

    @property
    def wire_id(self) -> str:
        """The id of the current attempt. Each attempt has its own: an instance may still hold the one before, and its
        late tokens and late cancellations must not touch this one.
        """
        return self.request_id if self.attempt == 0 else f"{self.request_id}.r{self.attempt}"

    @property
    def known_tokens(self) -> int:
        """Tokens that a new attempt computes anew."""
        return len(self.prompt_ids) + len(self.emitted_ids)

    @property
    def complete(self) -> bool:
        """Whether every token that was asked for is here, even if the end was never announced."""
        return len(self.emitted_ids) >= self.params.max_tokens

    def submit(self) -> Submit:
        """The message that starts the current attempt where the one before ended."""
        return Submit(
            request_id=self.wire_id,
            prompt_ids=self.prompt_ids,
            params=self.params,
            emitted_ids=list(self.emitted_ids),
        )

    def accept(self, delta: TokenDelta) -> tuple[list[int], list[TokenLogprob]]:
        """Take what is new in ``delta``; tokens that are here already are dropped.

        Raises:
            TokenGap: tokens between those here and those in ``delta`` are missing; nothing was taken.
        """
        known = len(self.emitted_ids) - delta.index
        if known < 0:
            raise TokenGap(
                f"{self.wire_id}: {len(self.emitted_ids)} tokens are here, the next ones are {delta.index}.."
            )
        token_ids = delta.token_ids[known:] if known else delta.token_ids
        logprobs = (delta.logprobs or [])[known:]
        self.emitted_ids += token_ids
        return token_ids, logprobs
