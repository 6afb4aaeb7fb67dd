"""The checkpoint's tokenizer, without ``transformers``."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import tokenizers

from janus.errors import CheckpointError
from janus.text.chat_template import ChatTemplate
from janus.text.decoders import Decoding, byte_level_bytes, byte_token
from janus.text.detokenizer import Detokenizer

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class Tokenizer:
    """Text to ids and back, for one checkpoint. Immutable after ``load``, safe to share between threads."""

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        decoding: Decoding,
        *,
        eos_ids: frozenset[int] = frozenset(),
        chat_template: ChatTemplate | None = None,
    ) -> None:
        self._backend = backend
        self._decoding = decoding
        self._special_ids = frozenset(i for i, t in backend.get_added_tokens_decoder().items() if t.special)
        self._tokens: dict[int, str | None] = {}
        #: Tokens that end a generation.
        self.eos_ids = eos_ids
        #: None: this checkpoint has no chat template.
        self.chat_template = chat_template
        #: One more than the largest id.
        self.vocab_size = 1 + max(backend.get_vocab(with_added_tokens=True).values(), default=-1)

    @classmethod
    def load(cls, model_dir: str | Path) -> Tokenizer:
        """Read ``tokenizer.json`` and its companions from a Hugging Face model directory.

        End-of-sequence ids come from ``generation_config.json``, else ``config.json``, else ``tokenizer_config.json``.

        Raises:
            CheckpointError: ``tokenizer.json`` is missing or broken, its decoder cannot be streamed, or the chat
                template is none; names the file.
        """
        model_dir = Path(model_dir)
        path = model_dir / "tokenizer.json"
        if not path.is_file():
            raise CheckpointError(str(path), "file not found", "a model directory needs a tokenizer.json")
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise CheckpointError(str(path), f"not a tokenizer file: {error}") from error
        # Training leftovers would silently cut or pad prompts.
        backend.no_truncation()
        backend.no_padding()
        decoder = backend.decoder
        spec = json.loads(decoder.__getstate__()) if decoder is not None else None
        config = _tokenizer_config(model_dir)
        return cls(
            backend,
            Decoding.from_spec(spec, where=str(path)),
            eos_ids=_eos_ids(model_dir, config, backend),
            chat_template=_chat_template(model_dir, config),
        )

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the ids of ``text``. Releases the GIL, so long texts may be encoded in a thread.

        Args:
            text: any text; lone surrogates, which are no valid Unicode, become U+FFFD.
            add_special_tokens: let the tokenizer frame the text (for example with BOS). Off for rendered chats, whose
                template has written the frame already.
        """
        try:
            batch = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        except TypeError:  # what the library says of a str that is not valid Unicode
            clean = _LONE_SURROGATE.sub("\N{REPLACEMENT CHARACTER}", text)
            batch = self._backend.encode_batch_fast([clean], add_special_tokens=add_special_tokens)
        ids: list[int] = batch[0].ids
        return ids

    def decode(self, token_ids: list[int]) -> str:
        """Return the text of ``token_ids``, special tokens left out."""
        detokenizer = self.detokenizer()
        return detokenizer.push(token_ids) + detokenizer.flush()

    def detokenizer(self) -> Detokenizer:
        """A detokenizer for one new output stream."""
        return Detokenizer(self._visible_token, self._decoding.stages())

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that this token alone stands for (logprobs show them: one token may be half a character)."""
        token = self._backend.id_to_token(token_id)
        if token is None:
            return b""
        if self._decoding.byte_level and token_id not in self._special_ids:
            return byte_level_bytes(token)
        byte = byte_token(token)
        return token.replace("▁", " ").encode() if byte is None else bytes([byte])

    def _visible_token(self, token_id: int) -> str | None:
        try:
            return self._tokens[token_id]
        except KeyError:
            hidden = token_id in self._special_ids
            token: str | None = None if hidden else self._backend.id_to_token(token_id)
            self._tokens[token_id] = token
            return token


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise CheckpointError(str(path), f"not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(str(path), "not a JSON object")
    return content


def _tokenizer_config(model_dir: Path) -> dict[str, Any]:
    """``tokenizer_config.json``, with the special tokens that only ``special_tokens_map.json`` of old names."""
    config = _read_json(model_dir / "tokenizer_config.json")
    named = _read_json(model_dir / "special_tokens_map.json")
    return config | {key: text for key, text in named.items() if key.endswith("_token") and not config.get(key)}


def _eos_ids(model_dir: Path, tokenizer_config: dict[str, Any], backend: tokenizers.Tokenizer) -> frozenset[int]:
    for name in ("generation_config.json", "config.json"):
        value = _read_json(model_dir / name).get("eos_token_id")
        if value is not None:
            return frozenset(value if isinstance(value, list) else [value])
    token_id = backend.token_to_id(_content(tokenizer_config.get("eos_token")) or "")
    return frozenset() if token_id is None else frozenset([token_id])


def _chat_template(model_dir: Path, config: dict[str, Any]) -> ChatTemplate | None:
    path = model_dir / "chat_template.jinja"
    source: Any
    if path.is_file():
        try:
            source = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(str(path), f"the chat template is no UTF-8: {error}") from error
    else:
        path = model_dir / "tokenizer_config.json"
        source = config.get("chat_template")
        if isinstance(source, list):  # several, named; "default" is the one for plain chats
            try:
                source = {entry["name"]: entry["template"] for entry in source}.get("default")
            except (TypeError, KeyError) as error:
                problem = "an entry of chat_template is no object with a name and a template"
                raise CheckpointError(str(path), problem) from error
    if source is None:
        return None
    special = {key: text for key, value in config.items() if key.endswith("_token") and (text := _content(value))}
    return ChatTemplate(source, special_tokens=special, where=str(path))


def _content(token: Any) -> str | None:
    """A special token is written as a string or as an object with ``content``."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None
