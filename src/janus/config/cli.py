"""The typer commands of all executables, built from the options' fields; and how their errors are shown.

A service's ``__main__`` is one call::

    def main() -> None:
        run_service(ExpertOptions, serve, prog="janus-expert-server", help="Holds experts ...")
"""

from __future__ import annotations

import difflib
import inspect
import os
import re
import sys
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer

import janus
from janus.config.fields import OptionField, option_fields
from janus.config.sources import SERVICES, resolve
from janus.errors import JanusError

T = TypeVar("T")
#: What a command returns becomes the exit status; ``None`` is 0.
Command = Callable[[T], "int | None"]

EXIT_USAGE = 2
#: How the option parser names words that it has no place for.
_EXTRA = re.compile(r"unexpected extra arguments?(?:\(s\))? \((.*)\)")


def run_service(cls: type[T], run: Command[T], *, prog: str, help: str, args: Sequence[str] | None = None) -> NoReturn:
    """Parse the command line of one service, run it, and exit with its status.

    A wrong option ends with one line ``error: field: problem; remedy`` and status 2, never with a traceback; so does a
    JanusError that ``run`` raises, with status 1.
    """
    app = typer.Typer(name=prog, add_completion=False, rich_markup_mode="rich", no_args_is_help=False)
    app.command(help=help, epilog=_epilog(cls))(options_command(cls, lambda options, _: run(options), version=True))
    run_app(app, prog=prog, args=args)


def options_command(
    cls: type[T], run: Callable[[T, Path | None], int | None], *, version: bool = False
) -> Callable[..., int | None]:
    """Return a function for ``app.command()`` that resolves the options of ``cls`` and calls ``run(options, config)``.

    ``config`` is the file of ``--config``, for those who start others with it.
    """
    hidden: frozenset[str] = getattr(cls, "HIDDEN", frozenset())
    items = [item for item in option_fields(cls) if item.name not in hidden]

    def command(**given: Any) -> int | None:
        file = given.pop("config", None)
        config = Path(file).expanduser().absolute() if file else None
        given.pop("version", None)
        return run(resolve(cls, cli=given, environ=os.environ, config=config), config)

    parameters = [_parameter(item) for item in items]
    if hasattr(cls, "SERVICE"):
        parameters.append(_keyword("config", str | None, "--config", metavar="FILE.toml", help=_CONFIG_HELP))
    if version:
        parameters.append(_keyword("version", bool, "--version", help="Show the version.", callback=_show_version))
    signature = inspect.Signature(parameters, return_annotation=int)
    command.__signature__ = signature  # type: ignore[attr-defined]  # typer reads it
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def add_command(app: typer.Typer, name: str, cls: type[T], run: Callable[[T, Path | None], int | None]) -> None:
    """Add a command to ``app`` whose options are the fields of ``cls`` and whose help is the docstring of ``cls``.

    A class with a ``SERVICE`` also reads the environment and ``--config``.
    """
    help = inspect.cleandoc(cls.__doc__ or "").replace("\n\n", " ").replace("\n", " ").replace("``", "")
    app.command(name, help=help, epilog=_epilog(cls) if hasattr(cls, "SERVICE") else None)(options_command(cls, run))


def run_app(app: typer.Typer, *, prog: str, args: Sequence[str] | None = None) -> NoReturn:
    """Run a typer application, show errors as one line, and exit."""
    command = typer.main.get_command(app)
    try:
        status = command.main(args=args, prog_name=prog, standalone_mode=False)
    except JanusError as error:
        _fail(str(error), EXIT_USAGE if type(error).__name__ == "ConfigError" else 1)
    except typer.Abort:
        _fail("interrupted", 130)
    except Exception as error:
        # Usage errors of the option parser; which module they come from depends on typer's version.
        if not hasattr(error, "format_message"):
            raise
        _fail(_usage_problem(error, prog), EXIT_USAGE)
    sys.exit(status if isinstance(status, int) else 0)


_CONFIG_HELP = (
    "TOML file with options in the tables common, gateway, attention, expert, controller, up. (default: none)"
)


def _parameter(item: OptionField) -> inspect.Parameter:
    if item.info.positional:
        several = typing.get_origin(item.annotation) is tuple
        argument = typer.Argument(metavar=item.metavar, help=help_text(item), show_default=False)
        kind: Any = list[str] | None if several else str | None
        annotation = Annotated[kind, argument]
        return inspect.Parameter(item.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
    if typing.get_origin(item.annotation) is tuple:
        panel = item.info.panel
        return _keyword(
            item.name, list[str] | None, item.flag, help=help_text(item), metavar=item.metavar, rich_help_panel=panel
        )
    flags = f"{item.flag}/--no-{item.flag[2:]}" if item.is_bool else item.flag
    return _keyword(
        item.name,
        bool | None if item.is_bool else str | None,
        flags,
        help=help_text(item),
        metavar=None if item.is_bool else item.metavar,
        rich_help_panel=item.info.panel,
    )


def help_text(item: OptionField) -> str:
    """What the help says of an option: its purpose and its default; the unit is the placeholder of the value."""
    return f"{item.info.help} ({_default_text(item)})"


def _keyword(name: str, annotation: Any, *flags: str, **settings: Any) -> inspect.Parameter:
    settings.setdefault("show_default", False)
    if name == "version":
        settings["is_eager"] = True
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=False if annotation is bool else None,
        annotation=Annotated[annotation, typer.Option(*flags, **settings)],
    )


def _default_text(item: OptionField) -> str:
    if item.required:
        return "required"
    default = item.default
    if item.is_bool:
        default = "on" if default else "off"
    if default is None:
        default = ""
    text = item.info.default_text or (f"{default:g}" if isinstance(default, float) else str(default)) or "none"
    return text if text == "required" else f"default: {text}"


def _epilog(cls: type) -> str:
    service = next(name for name, known in SERVICES.items() if known is cls).upper()
    return (
        f"Every option can also come from the environment as JANUS_{service}_<OPTION> or from the file of --config; "
        "the command line decides before the environment, and the environment before the file."
    )


def _usage_problem(error: Any, prog: str) -> str:
    """``field: problem; remedy`` of a usage error of click, whichever module it comes from."""
    remedy = f"see {prog} --help"
    option_name = getattr(error, "option_name", None)
    said = error.format_message().rstrip(".")
    if option_name is None:
        extra = _EXTRA.search(said)
        return f"{extra[1]}: is not expected; {remedy}" if extra else f"{said}; {remedy}"
    near = getattr(error, "possibilities", None) or difflib.get_close_matches(option_name, _flags(error.ctx))
    if type(error).__name__ == "NoSuchOption":
        return f"{option_name}: is no option; " + (f"did you mean {near[0]}?" if near else remedy)
    problem = "needs a value" if "requires" in said else "takes no value" if "not take" in said else "is used wrongly"
    return f"{option_name}: {problem}; {remedy}"


def _flags(ctx: Any) -> list[str]:
    return [flag for parameter in ctx.command.params for flag in parameter.opts] if ctx is not None else []


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"janus {janus.__version__}")
        raise typer.Exit


def _fail(message: str, status: int) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(status)
