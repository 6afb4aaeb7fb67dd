"""Bytes of a request body to a ``GenerationSpec``. Pure: the whole input checking of the endpoints is here, in
``janus.core.sampling.validate`` (ranges of sampling parameters) and in ``prompts`` (context length).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from janus.core.sampling import MAX_LOGPROBS, validate
from janus.errors import InvalidRequest
from janus.messages.control import SamplingParams
from janus_gateway.errors import ModelNotFound
from janus_gateway.schema import ChatBody, ChatMessage, CommonBody, CompletionBody
from janus_gateway.spec import Conversation, GenerationSpec, Prompt

MAX_N = 8
MAX_STOPS = 16
#: Characters of one stop string. Each costs a node of the matcher, which is built per sequence.
MAX_STOP_LENGTH = 1024
#: What ``/v1/completions`` generates when nothing is said (OpenAI's default).
DEFAULT_COMPLETION_TOKENS = 16
ROLES = ("system", "developer", "user", "assistant", "tool")

_Body = TypeVar("_Body", bound=CommonBody)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What parsing must know of the served model."""

    model_names: tuple[str, ...]
    vocab_size: int
    #: Sequences (prompts times n) that one request may start.
    max_sequences: int
    #: Sampling parameters that the checkpoint recommends; a request overrides them.
    defaults: SamplingParams = field(default_factory=SamplingParams)


def parse_completion(body: bytes, limits: Limits) -> GenerationSpec:
    """Parse ``POST /v1/completions``.

    Raises:
        InvalidRequest: names the field and what is allowed.
        ModelNotFound: another model is asked for.
    """
    request = _decode(body, CompletionBody, limits)
    if request.suffix:
        raise InvalidRequest("suffix (text insertion) is not supported; leave it out", param="suffix")
    if request.best_of is not None and request.best_of != (request.n or 1):
        raise InvalidRequest("best_of is not supported; leave it out, or give n alone", param="best_of")
    echo = bool(request.echo)
    if echo and request.logprobs is not None:
        raise InvalidRequest("echo with logprobs is not supported; leave one of them out", param="echo")
    max_tokens = DEFAULT_COMPLETION_TOKENS if request.max_tokens is None else request.max_tokens
    prompts = _completion_prompts(request, limits.vocab_size)
    return _spec(request, limits, prompts=prompts, max_tokens=max_tokens, logprobs=request.logprobs, echo=echo)


def parse_chat(body: bytes, limits: Limits) -> GenerationSpec:
    """Parse ``POST /v1/chat/completions``. Raises as ``parse_completion``."""
    request = _decode(body, ChatBody, limits)
    for name in ("tools", "functions"):
        if getattr(request, name):
            raise InvalidRequest(f"{name} are not supported; leave them out", param=name)
    if not request.messages:
        raise InvalidRequest("messages is missing or empty; give at least one message", param="messages")
    messages = tuple(_message(message, i) for i, message in enumerate(request.messages))
    if request.top_logprobs is not None and not request.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs: true", param="top_logprobs")
    if not 0 <= (request.top_logprobs or 0) <= MAX_LOGPROBS:
        raise InvalidRequest(
            f"top_logprobs is {request.top_logprobs}; give an integer from 0 to {MAX_LOGPROBS}", param="top_logprobs"
        )
    max_tokens = request.max_tokens if request.max_completion_tokens is None else request.max_completion_tokens
    return _spec(
        request,
        limits,
        prompts=(Conversation(messages=messages, template_variables=request.chat_template_kwargs or {}),),
        max_tokens=max_tokens,
        logprobs=(request.top_logprobs or 0) if request.logprobs else None,
    )


def _spec(
    request: CommonBody,
    limits: Limits,
    *,
    prompts: tuple[Prompt, ...],
    max_tokens: int | None,
    logprobs: int | None,
    echo: bool = False,
) -> GenerationSpec:
    n = 1 if request.n is None else request.n
    if not 1 <= n <= MAX_N:
        raise InvalidRequest(f"n is {n}; give an integer from 1 to {MAX_N}", param="n")
    if len(prompts) * n > limits.max_sequences:
        raise InvalidRequest(
            f"{len(prompts)} prompts times n={n} are more than the {limits.max_sequences} sequences that may be in "
            "flight at once; send fewer per request",
            param="prompt",
        )
    if request.stream_options is not None and not request.stream:
        raise InvalidRequest("stream_options needs stream: true", param="stream_options")
    options = request.stream_options
    return GenerationSpec(
        prompts=prompts,
        params=_params(request, limits, max_tokens, logprobs),
        max_tokens=max_tokens,
        n=n,
        stop=_stops(request.stop),
        stream=bool(request.stream),
        include_usage=options is not None and bool(options.include_usage),
        continuous_usage=options is not None and bool(options.continuous_usage_stats),
        echo=echo,
    )


def _params(request: CommonBody, limits: Limits, max_tokens: int | None, logprobs: int | None) -> SamplingParams:
    given = {name: value for name in _SAMPLING_FIELDS if (value := getattr(request, name)) is not None}
    if given.get("top_k") == -1:  # how vLLM's clients write "off"
        given["top_k"] = 0
    params = msgspec.structs.replace(limits.defaults, **given, logprobs=logprobs)
    if max_tokens is None:
        # Checked against the largest output there can be; ``prompts`` sets the number once the prompt is known.
        validate(msgspec.structs.replace(params, max_tokens=(1 << 31) - 1), limits.vocab_size)
        return msgspec.structs.replace(params, max_tokens=0)
    params = msgspec.structs.replace(params, max_tokens=max_tokens)
    validate(params, limits.vocab_size)
    return params


_SAMPLING_FIELDS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "min_tokens",
    "ignore_eos",
    "stop_token_ids",
)


def _stops(stop: str | list[str] | None) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(stops) > MAX_STOPS:
        raise InvalidRequest(f"stop has {len(stops)} strings; give at most {MAX_STOPS}", param="stop")
    for text in stops:
        if not 1 <= len(text) <= MAX_STOP_LENGTH:
            raise InvalidRequest(
                f"stop has a string of {len(text)} characters; give 1 to {MAX_STOP_LENGTH}", param="stop"
            )
    return stops


def _completion_prompts(request: CompletionBody, vocab_size: int) -> tuple[Prompt, ...]:
    prompt = request.prompt
    if not prompt:
        raise InvalidRequest("prompt is missing or empty; give text or token ids", param="prompt")
    if isinstance(prompt, str):
        return (prompt,)
    ids = [each for each in prompt if isinstance(each, int)]
    texts = [each for each in prompt if isinstance(each, str)]
    rows = [each for each in prompt if isinstance(each, list)]
    if len(ids) == len(prompt):
        return (_checked_ids(ids, vocab_size, "prompt"),)
    if len(rows) == len(prompt):
        return tuple(_checked_ids(row, vocab_size, f"prompt[{i}]") for i, row in enumerate(rows))
    if len(texts) < len(prompt):
        raise InvalidRequest("prompt mixes texts and token ids; give a list of one kind", param="prompt")
    if not all(texts):
        raise InvalidRequest("prompt has an empty text; give at least one character each", param="prompt")
    return tuple(texts)


def _checked_ids(ids: list[int], vocab_size: int, param: str) -> list[int]:
    if not ids:
        raise InvalidRequest(f"{param} has no token ids; give at least one", param=param)
    if min(ids) < 0 or max(ids) >= vocab_size:
        wrong = next(i for i in ids if not 0 <= i < vocab_size)
        raise InvalidRequest(f"{param} has token id {wrong}; ids go from 0 to {vocab_size - 1}", param=param)
    return ids


def _message(message: ChatMessage, index: int) -> dict[str, str]:
    if message.role not in ROLES:
        raise InvalidRequest(
            f"the role {message.role!r} is unknown; use one of {', '.join(ROLES)}", param=f"messages[{index}].role"
        )
    # Newer clients say "developer"; chat templates know "system".
    role = "system" if message.role == "developer" else message.role
    parts = message.content
    if parts is None:
        raise InvalidRequest("content is missing; give a text", param=f"messages[{index}].content")
    if isinstance(parts, str):
        return {"role": role, "content": parts}
    texts: list[str] = []
    for i, part in enumerate(parts):
        if part.type != "text" or part.text is None:
            raise InvalidRequest(
                f"a content part of type {part.type!r} is not supported; give {{'type': 'text', 'text': ...}}",
                param=f"messages[{index}].content[{i}]",
            )
        texts.append(part.text)
    return {"role": role, "content": "\n".join(texts)}


def _decode(body: bytes, kind: type[_Body], limits: Limits) -> _Body:
    try:
        request: _Body = _DECODERS[kind].decode(body)
    except msgspec.ValidationError as error:
        problem, _, path = str(error).partition(" - at `$")
        param = path.rstrip("`").lstrip(".").replace("[...]", "") or None
        raise InvalidRequest(f"{param or 'The body'}: {_plain(problem)}", param=param, code="invalid_type") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}", code="invalid_json") from error
    if request.model is not None and request.model not in limits.model_names:
        raise ModelNotFound(request.model, limits.model_names[0])
    if request.logit_bias:
        raise InvalidRequest("logit_bias is not supported; leave it out", param="logit_bias")
    if request.response_format is not None and request.response_format.type != "text":
        raise InvalidRequest("only the response_format 'text' is supported", param="response_format")
    return request


_DECODERS: dict[type, msgspec.json.Decoder[Any]] = {
    kind: msgspec.json.Decoder(kind) for kind in (CompletionBody, ChatBody)
}
_NAMES = {"int": "integer", "float": "number", "str": "string", "bool": "boolean"}


def _plain(problem: str) -> str:
    """msgspec's sentence with JSON's names of types instead of Python's."""
    words = re.sub(r"\b(int|float|str|bool)\b", lambda match: _NAMES[match[0]], problem)
    return words.replace("`", "").replace(" | null", "").replace("Expected", "expected")
