"""Chat messages to a prompt, with the checkpoint's own Jinja template.

The environment offers what ``transformers`` offers to templates (``raise_exception``, ``strftime_now``, an unescaped
``tojson``, loop controls, ``{% generation %}``), and is sandboxed: a template is code that came with the weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.utils
from jinja2.sandbox import ImmutableSandboxedEnvironment

from janus.errors import CheckpointError, InvalidRequest


class _Generation(jinja2.ext.Extension):
    """``{% generation %}...{% endgeneration %}`` marks the assistant's words for training; here it just renders."""

    tags = {"generation"}  # noqa: RUF012  jinja2 declares it as an instance-independent set

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().astimezone().strftime(pattern)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class _Dict:
    """``dict`` as templates may use it: to make one, not to reach its type."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(jinja2.utils.Namespace):
    """``namespace(...)``, whose attributes templates may set, but for those that Python's internals go by."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # as jinja2 has it, so that a template may set "self"
        attributes = dict(*args[1:], **kwargs)
        for name in attributes:
            _check_attribute(name)
        jinja2.utils.Namespace.__init__(args[0], attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_attribute(name)
        super().__setitem__(name, value)


def _check_attribute(name: str) -> None:
    if name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace has no attribute {name!r}; rename it")


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.globals["dict"] = _Dict()
    environment.globals["namespace"] = _Namespace
    return environment


class ChatTemplate:
    """One compiled chat template."""

    def __init__(self, source: str, *, special_tokens: Mapping[str, str], where: str) -> None:
        """``special_tokens``: ``bos_token`` and its like, visible to the template. ``where``: its file, for errors.

        Raises:
            CheckpointError: the template is no text, or does not compile.
        """
        if not isinstance(source, str):
            raise CheckpointError(where, f"the chat template is of type {type(source).__name__}, not a text")
        try:
            self._template = _environment().from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise CheckpointError(where, f"the chat template does not compile: {error}") from error
        self._special_tokens = dict(special_tokens)

    def render(self, messages: Sequence[Mapping[str, Any]], **variables: Any) -> str:
        """Return the prompt that asks for the assistant's next message.

        Args:
            messages: ``role`` and ``content`` (text) of each message, oldest first; what is None counts as absent.
            variables: further template variables, such as ``enable_thinking``.

        Raises:
            InvalidRequest: the template refuses these messages (for example roles that do not alternate).
        """
        scope = {"tools": None, "documents": None} | self._special_tokens | variables
        present = [{key: value for key, value in message.items() if value is not None} for message in messages]
        scope |= {"messages": present, "add_generation_prompt": True}
        try:
            return self._template.render(scope)
        except (
            *(jinja2.TemplateError, RecursionError),
            *(TypeError, ValueError, ArithmeticError, LookupError, AttributeError),
        ) as error:
            # A template is foreign code: whatever it trips over was brought about by these messages.
            raise InvalidRequest(
                f"The model's chat template refuses these messages: {error}", param="messages", code="chat_template"
            ) from error
