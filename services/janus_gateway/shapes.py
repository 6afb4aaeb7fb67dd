"""The JSON of the two endpoints, streamed and whole, as OpenAI documents it and vLLM writes it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from janus.messages.control import TokenLogprob
from janus.text import Tokenizer
from janus_gateway.choice import Piece

_encode = msgspec.json.encode
DONE = b"data: [DONE]\n\n"


def event(payload: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + _encode(payload) + b"\n\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Token counts of a request."""

    prompt_tokens: int
    completion_tokens: int

    def as_json(self) -> dict[str, int]:
        """The ``usage`` object."""
        total = self.prompt_tokens + self.completion_tokens
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": total,
        }


class Shape(Protocol):
    """How one endpoint words its answer. Holds the state of one answer (text offsets, which choices have begun)."""

    def chunk(self, piece: Piece, usage: Usage | None = None) -> bytes:
        """The event, or events, of one step of one choice."""
        ...

    def usage_chunk(self, usage: Usage) -> bytes:
        """The event before ``[DONE]`` that carries the counts."""
        ...

    def body(self, pieces: Sequence[Sequence[Piece]], usage: Usage) -> bytes:
        """The whole answer; ``pieces[i]`` are those of choice ``i``."""
        ...


class _Base:
    _object: str
    _chunk_object: str

    def __init__(
        self, request_id: str, model: str, tokenizer: Tokenizer, *, logprobs: int | None, null_usage: bool
    ) -> None:
        """``null_usage``: every chunk says ``"usage": null``, as OpenAI does where usage comes at the end."""
        self._head = {"id": request_id, "object": "", "created": int(time.time()), "model": model}
        self._tokenizer = tokenizer
        self._top = logprobs
        self._null_usage = null_usage
        # Everything in front of the choices is the same in every chunk of a request: encode it once.
        self._prefix = b"data: " + _encode(self._head | {"object": self._chunk_object})[:-1] + b',"choices":['

    def _event(self, choice: bytes, usage: Usage | None) -> bytes:
        if usage is not None:
            return b'%b%b],"usage":%b}\n\n' % (self._prefix, choice, _encode(usage.as_json()))
        return self._prefix + choice + (b'],"usage":null}\n\n' if self._null_usage else b"]}\n\n")

    def usage_chunk(self, usage: Usage) -> bytes:
        return self._event(b"", usage)

    def _body(self, choices: list[dict[str, Any]], usage: Usage) -> bytes:
        return _encode(self._head | {"object": self._object, "choices": choices, "usage": usage.as_json()})

    def _token_text(self, token_id: int) -> str:
        return self._tokenizer.token_bytes(token_id).decode(errors="replace")


class CompletionShape(_Base):
    """``/v1/completions``."""

    _object = _chunk_object = "text_completion"

    def __init__(
        self, request_id: str, model: str, tokenizer: Tokenizer, *, logprobs: int | None, null_usage: bool
    ) -> None:
        super().__init__(request_id, model, tokenizer, logprobs=logprobs, null_usage=null_usage)
        self._offsets: dict[int, int] = {}

    def chunk(self, piece: Piece, usage: Usage | None = None) -> bytes:
        logprobs = b"null" if self._top is None else _encode(self._logprobs([piece]))
        choice = b'{"index":%d,"text":%b,"logprobs":%b,"finish_reason":%b}'
        return self._event(choice % (piece.index, _encode(piece.text), logprobs, _encode(piece.finish_reason)), usage)

    def body(self, pieces: Sequence[Sequence[Piece]], usage: Usage) -> bytes:
        choices = [
            {
                "index": i,
                "text": "".join(piece.text for piece in row),
                "logprobs": None if self._top is None else self._logprobs(row),
                "finish_reason": row[-1].finish_reason,
            }
            for i, row in enumerate(pieces)
        ]
        return self._body(choices, usage)

    def _logprobs(self, row: Sequence[Piece]) -> dict[str, Any]:
        tokens: list[str] = []
        values: list[float] = []
        tops: list[dict[str, float]] = []
        offsets: list[int] = []
        for piece in row:
            offset = self._offsets.get(piece.index, 0)
            for token_id, logprob in zip(piece.token_ids, piece.logprobs, strict=True):
                token = self._token_text(token_id)
                tokens.append(token)
                values.append(_finite(logprob.logprob))
                offsets.append(offset)
                best = zip(logprob.top_ids, logprob.top_logprobs, strict=True)
                # The chosen token is always among them, so up to n + 1 entries, as OpenAI says.
                tops.append({self._token_text(i): _finite(v) for i, v in best} | {token: values[-1]})
                offset += len(token)
            self._offsets[piece.index] = offset
        return {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}


class ChatShape(_Base):
    """``/v1/chat/completions``."""

    _object = "chat.completion"
    _chunk_object = "chat.completion.chunk"

    def __init__(
        self, request_id: str, model: str, tokenizer: Tokenizer, *, logprobs: int | None, null_usage: bool
    ) -> None:
        super().__init__(request_id, model, tokenizer, logprobs=logprobs, null_usage=null_usage)
        self._begun: set[int] = set()

    def chunk(self, piece: Piece, usage: Usage | None = None) -> bytes:
        opening = b""
        if piece.index not in self._begun:
            self._begun.add(piece.index)
            delta = b'{"index":%d,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}'
            opening = self._event(delta % piece.index, None)
        logprobs = b"null" if self._top is None else _encode(self._logprobs([piece]))
        choice = b'{"index":%d,"delta":{"content":%b},"logprobs":%b,"finish_reason":%b}'
        filled = choice % (piece.index, _encode(piece.text), logprobs, _encode(piece.finish_reason))
        return opening + self._event(filled, usage)

    def body(self, pieces: Sequence[Sequence[Piece]], usage: Usage) -> bytes:
        choices = [
            {
                "index": i,
                "message": {"role": "assistant", "content": "".join(piece.text for piece in row), "refusal": None},
                "logprobs": None if self._top is None else self._logprobs(row),
                "finish_reason": row[-1].finish_reason,
            }
            for i, row in enumerate(pieces)
        ]
        return self._body(choices, usage)

    def _logprobs(self, row: Sequence[Piece]) -> dict[str, Any]:
        content = [
            self._entry(token_id, logprob.logprob) | {"top_logprobs": self._top_entries(logprob)}
            for piece in row
            for token_id, logprob in zip(piece.token_ids, piece.logprobs, strict=True)
        ]
        return {"content": content, "refusal": None}

    def _top_entries(self, logprob: TokenLogprob) -> list[dict[str, Any]]:
        return [self._entry(i, value) for i, value in zip(logprob.top_ids, logprob.top_logprobs, strict=True)]

    def _entry(self, token_id: int, logprob: float) -> dict[str, Any]:
        raw = self._tokenizer.token_bytes(token_id)
        return {"token": raw.decode(errors="replace"), "logprob": _finite(logprob), "bytes": list(raw)}


def _finite(logprob: float) -> float:
    """JSON has no infinity; OpenAI writes -9999 for a token that cannot be."""
    return max(logprob, -9999.0)
