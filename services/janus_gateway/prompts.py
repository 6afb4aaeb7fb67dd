"""From a parsed request to submissions: chat template, token ids, and the check against the context."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from janus.errors import InvalidRequest
from janus.messages.control import SamplingParams, Submit
from janus_gateway.model import ServedModel
from janus_gateway.spec import Conversation, GenerationSpec, Prompt

#: Texts longer than this many characters are encoded in a thread: at a few MB/s they would hold the loop up.
_LONG_TEXT = 16_384


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A request ready to be submitted: sequence ``i`` belongs to prompt ``i // n``."""

    request_id: str
    submits: list[Submit]
    #: Text to put in front of each sequence (``echo``), or empty.
    echoes: list[str]
    #: Tokens of all prompts, each counted once.
    prompt_tokens: int


class PromptEncoder:
    """Turns prompts into token ids for one model. At most one long text is encoded at a time."""

    def __init__(self, model: ServedModel, *, default_max_tokens: int) -> None:
        """``default_max_tokens``: what a request that names no limit may generate. It would otherwise reserve the whole
        context, at admission and in the KV cache, and a handful of chats would fill both.
        """
        self._model = model
        self._default_max_tokens = default_max_tokens
        self._long_texts = asyncio.Semaphore(1)

    async def prepare(self, spec: GenerationSpec, *, id_prefix: str) -> Prepared:
        """Encode every prompt and lay out the sequences.

        Raises:
            InvalidRequest: a prompt is empty, or does not fit the context together with ``max_tokens``.
        """
        rows = [await self._encode(prompt) for prompt in spec.prompts]
        request_id = id_prefix + uuid.uuid4().hex
        submits: list[Submit] = []
        for row in rows:
            params = self._fit(spec, len(row))
            for choice in range(spec.n):
                name = f"{request_id}-{len(submits)}"
                submits.append(Submit(request_id=name, prompt_ids=row, params=_choice_params(params, choice)))
        return Prepared(
            request_id=request_id,
            submits=submits,
            echoes=self._echoes(spec, rows) if spec.echo else [""] * len(submits),
            prompt_tokens=sum(map(len, rows)),
        )

    async def _encode(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, list):
            return prompt
        tokenizer, framed = self._model.tokenizer, True
        if isinstance(prompt, Conversation):
            if tokenizer.chat_template is None:
                raise InvalidRequest(
                    f"The model {self._model.name!r} has no chat template; use /v1/completions",
                    param="messages",
                    code="no_chat_template",
                )
            prompt = tokenizer.chat_template.render(prompt.messages, **prompt.template_variables)
            framed = False
        if len(prompt) <= _LONG_TEXT:
            ids = tokenizer.encode(prompt, add_special_tokens=framed)
        else:
            async with self._long_texts:
                ids = await asyncio.to_thread(tokenizer.encode, prompt, add_special_tokens=framed)
        if not ids:
            raise InvalidRequest("prompt has no tokens; give at least one", param="prompt")
        return ids

    def _fit(self, spec: GenerationSpec, prompt_len: int) -> SamplingParams:
        context, room = self._model.context_len, self._model.context_len - prompt_len
        param = "messages" if isinstance(spec.prompts[0], Conversation) else "prompt"
        if room < 1:
            raise InvalidRequest(
                f"This model's context is {context} tokens and the prompt has {prompt_len}, which leaves no room for "
                f"an answer; shorten the prompt to {context - 1} tokens or fewer",
                param=param,
                code="context_length_exceeded",
            )
        wanted = min(room, self._default_max_tokens) if spec.max_tokens is None else spec.max_tokens
        if wanted > room:
            raise InvalidRequest(
                f"This model's context is {context} tokens. You asked for {prompt_len + wanted}: {prompt_len} in the "
                f"prompt and {wanted} as max_tokens; lower max_tokens to {room}, or shorten the prompt",
                param=param,
                code="context_length_exceeded",
            )
        if spec.params.min_tokens > wanted:
            raise InvalidRequest(
                f"min_tokens is {spec.params.min_tokens} and {wanted} is the limit of this request; lower it, or give "
                "max_tokens",
                param="min_tokens",
            )
        return msgspec.structs.replace(spec.params, max_tokens=wanted)

    def _echoes(self, spec: GenerationSpec, rows: Sequence[list[int]]) -> list[str]:
        texts = [p if isinstance(p, str) else self._model.tokenizer.decode(row) for p, row in _pair(spec, rows)]
        return [text for text in texts for _ in range(spec.n)]


def _pair(spec: GenerationSpec, rows: Sequence[list[int]]) -> zip[tuple[Prompt, list[int]]]:
    return zip(spec.prompts, rows, strict=True)


def _choice_params(params: SamplingParams, choice: int) -> SamplingParams:
    """Choices of one request differ, also with a seed; the first one is what n=1 would give."""
    if choice == 0 or params.seed is None:
        return params
    seed = params.seed + choice
    return msgspec.structs.replace(params, seed=seed if seed < 1 << 63 else seed - (1 << 64))
