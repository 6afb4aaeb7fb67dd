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


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


class ChatTemplate:
    """One compiled chat template."""

    def __init__(self, source: str, *, special_tokens: Mapping[str, str], where: str) -> None:
        """``special_tokens``: ``bos_token`` and its like, visible to the template. ``where``: its file, for errors.

        Raises:
            CheckpointError: the template does not compile.
        """
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateError as error:
            raise CheckpointError(where, f"the chat template does not compile: {error}") from error
        self._special_tokens = dict(special_tokens)

    def render(self, messages: Sequence[Mapping[str, Any]], **variables: Any) -> str:
        """Return the prompt that asks for the assistant's next message.

        Args:
            messages: ``role`` and ``content`` (text) of each message, oldest first.
            variables: further template variables, such as ``enable_thinking``.

        Raises:
            InvalidRequest: the template refuses these messages (for example roles that do not alternate).
        """
        scope = {"tools": None, "documents": None} | self._special_tokens | variables
        scope |= {"messages": list(messages), "add_generation_prompt": True}
        try:
            return self._template.render(scope)
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
            # A template is foreign code: whatever it trips over was brought about by these messages.
            raise InvalidRequest(
                f"The model's chat template refuses these messages: {error}", param="messages", code="chat_template"
            ) from error
