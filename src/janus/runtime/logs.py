"""Structured logs on stderr: one event per line, JSON or for a console, with the instance bound to every line."""

from __future__ import annotations

import logging
import sys

import structlog
from structlog.tracebacks import ExceptionDictTransformer

from janus.config.options import CommonOptions

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def configure(common: CommonOptions, *, role: str) -> None:
    """Set structlog up for this process, and route the standard library's warnings and errors through it."""
    level = _LEVELS[common.log_level]
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    renderer: structlog.typing.Processor
    if common.log_format == "json":
        # Without the values of local variables: among them are secrets, and what users wrote.
        shared.append(structlog.processors.ExceptionRenderer(ExceptionDictTransformer(show_locals=False)))
        renderer = structlog.processors.JSONRenderer()
    else:
        # Plain tracebacks: the rich ones print every local variable.
        renderer = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.clear_contextvars()
    # Bound as defaults rather than per logger, so that both loops of a process carry them.
    structlog.configure(processors=[_bind(role=role, instance=common.name), *shared, renderer])
    logging.basicConfig(level=logging.WARNING, handlers=[_Forward()], force=True)


def _bind(**fields: str) -> structlog.typing.Processor:
    def add(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        for key, value in fields.items():
            event.setdefault(key, value)
        return event

    return add


class _Forward(logging.Handler):
    """Turns a record of the standard library into one of our events."""

    def emit(self, record: logging.LogRecord) -> None:
        log = structlog.get_logger()
        fields: dict[str, object] = {"logger": record.name, "message": record.getMessage()}
        if record.exc_info:
            fields["exc_info"] = record.exc_info
        log.log(record.levelno, "library_message", **fields)
