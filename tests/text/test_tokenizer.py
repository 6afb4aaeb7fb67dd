"""Loading a tokenizer from a model directory, and the chat template as transformers renders it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, processors
from transformers import PreTrainedTokenizerFast

from janus.errors import CheckpointError, InvalidRequest
from janus.text import ChatTemplate, Tokenizer
from tests.text.builders import byte_level, save

CHATML = (
    "{%- if not messages %}{{ raise_exception('no messages') }}{% endif %}"
    "{% for message in messages %}{% if message['role'] == 'tool' %}{% continue %}{% endif %}\n"
    "    {{- '<|im_start|>' + message['role'] + '\\n' }}"
    "{%- if message.role == 'assistant' %}{% generation %}{{ message.content | trim }}{% endgeneration %}"
    "{% else %}{{ message.content | tojson }}{% endif %}"
    "{{- eos_token + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
)
MESSAGES = [
    {"role": "user", "content": "<b>Grüße</b> \"quoted\" & 'so'"},
    {"role": "tool", "content": "skipped"},
    {"role": "assistant", "content": "  yes  "},
]


def test_ids_and_text_are_those_of_transformers(tmp_path: Path) -> None:
    backend = byte_level()
    bos = backend.token_to_id("<|im_start|>")
    backend.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", bos)]
    )
    theirs = PreTrainedTokenizerFast(tokenizer_object=backend)
    ours = Tokenizer.load(save(backend, tmp_path))
    text = "<|im_start|>user\nGrüße <think>né 日 👩‍👩‍👧<|im_end|>"
    assert ours.encode(text) == theirs.encode(text)
    assert ours.encode(text, add_special_tokens=False) == theirs.encode(text, add_special_tokens=False)
    ids = ours.encode(text)
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def test_lone_surrogates_from_json_escapes_do_not_break_encoding(bytes_tokenizer: Tokenizer) -> None:
    assert bytes_tokenizer.decode(bytes_tokenizer.encode("a\ud800b")) == "a\ufffdb"


def test_token_bytes_concatenate_to_the_text(bytes_tokenizer: Tokenizer) -> None:
    text = "naïve 日本 𝄞"
    assert b"".join(map(bytes_tokenizer.token_bytes, bytes_tokenizer.encode(text))).decode() == text
    assert bytes_tokenizer.token_bytes(10**6) == b""


def test_truncation_and_padding_left_in_the_file_are_switched_off(tmp_path: Path) -> None:
    backend = byte_level()
    backend.enable_truncation(4)
    backend.enable_padding(length=4)
    ours = Tokenizer.load(save(backend, tmp_path))
    assert len(ours.encode("a much longer text than four tokens")) > 4
    assert len(ours.encode("a")) == 1


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"generation_config.json": {"eos_token_id": [1, 2]}, "config.json": {"eos_token_id": 3}}, {1, 2}),
        ({"generation_config.json": {}, "config.json": {"eos_token_id": 3}}, {3}),
        ({"config.json": {"eos_token_id": None}}, {"<|im_end|>"}),
    ],
)
def test_eos_ids_come_from_the_first_file_that_names_them(tmp_path: Path, files: dict, expected: set) -> None:
    backend = byte_level()
    save(backend, tmp_path, eos_token={"content": "<|im_end|>", "lstrip": False})
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    ids = {backend.token_to_id(e) if isinstance(e, str) else e for e in expected}
    assert Tokenizer.load(tmp_path).eos_ids == ids


@pytest.mark.parametrize("variables", [{}, {"enable_thinking": False}])
@pytest.mark.parametrize("as_file", [True, False])
def test_chat_template_renders_as_in_transformers(tmp_path: Path, variables: dict, as_file: bool) -> None:
    backend = byte_level()
    config: dict = {"eos_token": "<|im_end|>"}
    if as_file:
        (tmp_path / "chat_template.jinja").write_text(CHATML)
    else:
        config["chat_template"] = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": CHATML}]
    template = Tokenizer.load(save(backend, tmp_path, **config)).chat_template
    assert template is not None
    theirs = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", chat_template=CHATML)
    expected = theirs.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True, **variables)
    assert template.render(MESSAGES, **variables) == expected


def template_of(source: str) -> ChatTemplate:
    return ChatTemplate(source, special_tokens={}, where="chat_template.jinja")


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[5].content }}",
        "{{ messages[0]['content'] + 1 }}",
        "{{ ().__class__.__mro__ }}",
        "{{ messages.append(1) }}",
    ],
)
def test_whatever_a_template_trips_over_is_the_clients_error(source: str) -> None:
    with pytest.raises(InvalidRequest, match="chat template refuses"):
        template_of(source).render([{"role": "user", "content": "hi"}])


def test_a_template_may_ask_for_the_date() -> None:
    assert template_of("{{ strftime_now('%Y') }}").render([]).startswith("20")


def test_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: file not found"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="not a tokenizer file"):
        Tokenizer.load(tmp_path)
    save(byte_level(), tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[1]")
    with pytest.raises(CheckpointError, match="not a JSON object"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{% if %}"}))
    with pytest.raises(CheckpointError, match="does not compile"):
        Tokenizer.load(tmp_path)


def test_a_decoder_that_cannot_be_streamed_is_refused_at_load(tmp_path: Path) -> None:
    backend = Backend(models.WordLevel({"a": 0}, unk_token="a"))
    backend.decoder = decoders.WordPiece()
    with pytest.raises(CheckpointError, match="WordPiece"):
        Tokenizer.load(save(backend, tmp_path))
