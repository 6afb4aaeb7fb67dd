"""Between gateways and attention instances: requests, and the tokens that come back."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from janus.messages.base import TaggedMessage

FinishReason: TypeAlias = Literal["stop", "length", "cancelled", "error"]


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How tokens are chosen. Ranges are checked once, in ``janus.core.sampling.validate``."""

    temperature: float = 1.0
    top_p: float = 1.0
    #: 0 = off.
    top_k: int = 0
    min_p: float = 0.0
    #: With a seed, the tokens depend on prompt, parameters and seed alone, not on batch, server or time.
    seed: int | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    max_tokens: int = 16
    min_tokens: int = 0
    ignore_eos: bool = False
    stop_token_ids: list[int] = msgspec.field(default_factory=list)
    #: ``None`` = none wanted; n = the chosen token's and the n most likely ones' log-probabilities.
    logprobs: int | None = None


class Submit(TaggedMessage, frozen=True, tag="submit"):
    """Gateway -> attention instance: generate. ``emitted_ids`` is non-empty when the request resumes elsewhere."""

    request_id: str
    prompt_ids: list[int]
    params: SamplingParams
    emitted_ids: list[int] = msgspec.field(default_factory=list)


class Cancel(TaggedMessage, frozen=True, tag="cancel"):
    """Gateway -> attention instance: forget the request. No answer; late tokens are dropped by the gateway."""

    request_id: str


class TokenLogprob(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Natural-log probabilities of one position, from the unmodified distribution (before temperature, penalties)."""

    logprob: float
    top_ids: list[int]
    top_logprobs: list[float]


class TokenDelta(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """News of one request. Exactly one delta with ``finish_reason`` ends it."""

    request_id: str
    #: Position of the first of ``token_ids`` in the output, counted from 0 over all attempts.
    index: int
    token_ids: list[int]
    logprobs: list[TokenLogprob] | None = None
    finish_reason: FinishReason | None = None
    #: The stop token that ended it, when one did.
    stop_token_id: int | None = None
    #: With ``finish_reason == "error"``: an HTTP status, a stable code and a sentence for the client.
    status: int = 0
    code: str = ""
    problem: str = ""
    retry_after_s: float | None = None


class Tokens(TaggedMessage, frozen=True, tag="tokens"):
    """Attention instance -> gateway: all news of one step, in one message."""

    deltas: list[TokenDelta]
    #: Share of the instance's KV cache in use after the step, 0..1.
    kv_usage: float = 0.0
