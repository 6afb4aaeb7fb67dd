"""What one HTTP request asks for, after parsing: the same for both endpoints, and free of JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from janus.messages.control import SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """The messages of a chat, as the template takes them (``role`` and text ``content``)."""

    messages: tuple[Mapping[str, str], ...]
    template_variables: Mapping[str, Any] = field(default_factory=dict)


#: Text, token ids, or a chat.
Prompt: TypeAlias = str | list[int] | Conversation


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationSpec:
    """One parsed request: ``len(prompts) * n`` sequences."""

    prompts: tuple[Prompt, ...]
    #: ``max_tokens`` in here is 0 when the client gave none; see ``max_tokens``.
    params: SamplingParams
    #: None: the gateway's default, where the context has room for as many.
    max_tokens: int | None
    n: int = 1
    stop: tuple[str, ...] = ()
    stream: bool = False
    include_usage: bool = False
    continuous_usage: bool = False
    echo: bool = False

    @property
    def wants_logprobs(self) -> bool:
        """Whether the answer carries log-probabilities."""
        return self.params.logprobs is not None
