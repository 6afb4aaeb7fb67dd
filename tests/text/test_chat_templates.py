"""Chat templates in the style of the families that are served, rendered from a directory as ``transformers`` does."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from jinja2.sandbox import SecurityError
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from janus.errors import CheckpointError, InvalidRequest
from janus.text import ChatTemplate, Tokenizer
from tests.text.builders import byte_level, save

TEMPLATES = sorted((Path(__file__).parent / "templates").glob("*.jinja"))
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in <b>Köln</b> & elsewhere",
        "parameters": {
            "type": "object",
            "properties": {
                "unit": {"type": "string", "enum": ["°C", "°F"]},
                "days": {"type": "array", "items": {"type": "integer"}},
                "city": {"type": "string"},
            },
            "required": ["city"],
        },
    },
}
CALL = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Köln", "days": [1, 2]}}}
SYSTEM = {"role": "system", "content": 'Be <brief> & "kind".\nAlways.'}
USER = {"role": "user", "content": "  Wie wird's in Köln? 日本 {{ messages }} {% if %} "}
ANSWER = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nGut."}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one_question": [USER],
    "system_prompt": [SYSTEM, USER],
    "several_turns": [SYSTEM, USER, ANSWER, USER],
    "nothing_said": [{"role": "user", "content": ""}],
}
WITH_TOOLS: dict[str, list[dict[str, Any]]] = {
    "offered": [SYSTEM, USER],
    "called": [
        USER,
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": '{"°C": 21}'},
    ],
    # As clients send it: no content, and no calls, are null.
    "called_without_words": [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "21"},
        ANSWER | {"tool_calls": None},
        USER,
    ],
}
#: Those that speak of tools.
TOOL_TEMPLATES = [path for path in TEMPLATES if "tools" in path.read_text()]


Loaded: TypeAlias = tuple[ChatTemplate, Tokenizer, PreTrainedTokenizerFast]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Loaded]:
    """A template in a directory that ``transformers`` writes: ours, with its tokenizer, and theirs."""
    special = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    backend = byte_level()

    @cache
    def load(template: Path) -> Loaded:
        directory = tmp_path_factory.mktemp(template.stem)
        fast = PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=template.read_text(), **special)
        fast.save_pretrained(directory)
        ours = Tokenizer.load(directory)
        assert ours.chat_template is not None
        return ours.chat_template, ours, AutoTokenizer.from_pretrained(directory)

    return load


@pytest.mark.parametrize("variables", [{}, {"enable_thinking": False, "reasoning_effort": "high"}], ids=["", "set"])
@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.stem)
def test_a_chat_is_what_transformers_makes_of_it(
    template: Path, name: str, variables: dict[str, Any], load: Callable[[Path], Loaded]
) -> None:
    messages = CONVERSATIONS[name]
    ours, tokenizer, theirs = load(template)
    want = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **variables)
    assert ours.render(messages, **variables) == want
    assert messages[-1]["content"].strip() in want
    ids = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False, **variables)
    assert tokenizer.encode(want, add_special_tokens=False) == ids


@pytest.mark.parametrize("name", WITH_TOOLS)
@pytest.mark.parametrize("template", TOOL_TEMPLATES, ids=lambda path: path.stem)
def test_tools_are_shown_as_in_transformers(template: Path, name: str, load: Callable[[Path], Loaded]) -> None:
    messages = WITH_TOOLS[name]
    ours, _, theirs = load(template)
    want = theirs.apply_chat_template(messages, tools=[WEATHER], tokenize=False, add_generation_prompt=True)
    assert ours.render(messages, tools=[WEATHER]) == want
    assert "get_weather" in want and "Köln" in want


def test_every_style_is_there() -> None:
    assert len(TEMPLATES) == 6
    assert len(TOOL_TEMPLATES) == 3


# -- special tokens ----------------------------------------------------------------------------------------------------


def test_tokens_that_only_the_old_map_names_are_known(tmp_path: Path) -> None:
    """What ``tokenizer_config.json`` says goes first, as in transformers."""
    backend = byte_level()
    save(backend, tmp_path, pad_token=None, eos_token="<|im_end|>", chat_template="{{ bos_token }}|{{ eos_token }}")
    old = {"bos_token": {"content": "<|im_start|>", "lstrip": False}, "eos_token": "<|endoftext|>"}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(old))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.chat_template is not None
    assert tokenizer.chat_template.render([]) == "<|im_start|>|<|im_end|>"
    assert tokenizer.eos_ids == {backend.token_to_id("<|im_end|>")}


# -- bad templates -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}", "does not compile: Unexpected end of template"),
        ("{{ messages | no_such_filter }}", "does not compile: No filter named 'no_such_filter'"),
        ("{% break %", "does not compile"),
        (7, "the chat template is of type int, not a text"),
        ({"default": "x"}, "the chat template is of type dict, not a text"),
        (["x"], "an entry of chat_template is no object with a name and a template"),
        ([{"name": "default"}], "an entry of chat_template is no object with a name and a template"),
        ([{"name": "default", "template": "{% if %}"}], "does not compile"),
    ],
)
def test_a_bad_template_is_named_with_its_file(tmp_path: Path, template: object, message: str) -> None:
    save(byte_level(), tmp_path, chat_template=template)
    with pytest.raises(CheckpointError) as caught:
        Tokenizer.load(tmp_path)
    assert message in str(caught.value)
    assert "tokenizer_config.json" in str(caught.value)


def test_a_template_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    save(byte_level(), tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe{{ messages }}")
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja: the chat template is no UTF-8"):
        Tokenizer.load(tmp_path)


ESCAPES = {
    "type of a dict": "{{ dict.__class__.__mro__ }}",
    "attribute of a namespace": "{% set ns = namespace(__class__=1) %}",
    "attribute set later": "{% set ns = namespace() %}{% set ns.__init__ = 1 %}",
    "globals of a function": "{{ raise_exception.__globals__.json }}",
    "format": "{{ '{0.__class__.__mro__}'.format(messages) }}",
    "a list that is changed": "{{ messages.append(1) }}",
}


@pytest.mark.parametrize("source", ESCAPES.values(), ids=ESCAPES.keys())
def test_a_template_stays_in_its_sandbox(source: str) -> None:
    template = ChatTemplate(source, special_tokens={}, where="chat_template.jinja")
    with pytest.raises(InvalidRequest, match="chat template refuses") as caught:
        template.render([{"role": "user", "content": "hi"}])
    assert isinstance(caught.value.__cause__, SecurityError)


def test_a_macro_without_end_is_an_error_of_its_own() -> None:
    template = ChatTemplate("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", special_tokens={}, where="x")
    with pytest.raises(InvalidRequest, match="recursion"):
        template.render([{"role": "user", "content": "hi"}])


def test_templates_may_keep_values() -> None:
    source = "{% set ns = namespace(n=1, self=2) %}{% set ns.n = ns.n + ns.self %}{{ ns.n }}{{ dict(a=1)['a'] }}"
    assert ChatTemplate(source, special_tokens={}, where="x").render([]) == "31"
