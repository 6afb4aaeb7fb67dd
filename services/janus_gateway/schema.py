"""The request bodies as clients may write them: field names and JSON types. Unknown fields are ignored.

Types are strict (``"16"`` is no number), ``null`` means "not given" everywhere. Ranges and combinations are checked in
``parse``; the ``Meta`` bounds here only tell ``/openapi.json``. Fields that would change the answer and that Janus does
not serve (``best_of``, ``suffix``, ``tools``, ...) are listed so that they can be refused instead of ignored.
"""

from __future__ import annotations

from typing import Any

import msgspec


class StreamOptions(msgspec.Struct, frozen=True):
    """Only with ``stream``."""

    #: One more chunk at the end, with the token counts of the whole request.
    include_usage: bool | None = None
    #: The counts so far in every chunk.
    continuous_usage_stats: bool | None = None


class ResponseFormat(msgspec.Struct, frozen=True):
    """Only ``text`` is served."""

    type: str = "text"


class CommonBody(msgspec.Struct, frozen=True, kw_only=True):
    """What both endpoints take."""

    model: str | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    #: 0 or -1 = off.
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    n: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    logit_bias: dict[str, Any] | None = None
    response_format: ResponseFormat | None = None


class CompletionBody(CommonBody, frozen=True, kw_only=True):
    """``POST /v1/completions``."""

    #: Text, several texts, the token ids of one prompt, or of several.
    prompt: str | list[str | int | list[int]] | None = None
    #: n = the log-probabilities of each chosen token and of the n most likely ones.
    logprobs: int | None = None
    echo: bool | None = None
    best_of: int | None = None
    suffix: str | None = None


class ContentPart(msgspec.Struct, frozen=True):
    """One part of a message; only ``text`` parts are served."""

    type: str
    text: str | None = None


class ChatMessage(msgspec.Struct, frozen=True):
    """One message of the conversation."""

    role: str
    content: str | list[ContentPart] | None = None
    name: str | None = None


class ChatBody(CommonBody, frozen=True, kw_only=True):
    """``POST /v1/chat/completions``."""

    messages: list[ChatMessage] | None = None
    #: Takes precedence over ``max_tokens``, its older name.
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    #: Further variables for the model's chat template, such as ``enable_thinking``.
    chat_template_kwargs: dict[str, Any] | None = None
    tools: list[Any] | None = None
    functions: list[Any] | None = None
