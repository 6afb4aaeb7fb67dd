"""``janus``: the commands, each in a module of its own that is imported when it is used."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import typer

import janus
from janus.config import UpOptions
from janus.config.cli import add_command, run_app
from janus_cli.options import (
    ChatOptions,
    DemoOptions,
    DoctorOptions,
    DownOptions,
    DrainOptions,
    RestartOptions,
    ScaleOptions,
    StatusOptions,
    VersionOptions,
)
from janus_cli.plan import PlanOptions
from janus_cli.profile import ProfileOptions
from janus_cli.simulate import SimulateOptions


def _of(module: str, function: str) -> Callable[[Any, Path | None], int | None]:
    """Return a command whose module is imported when it is used: most of them load much."""

    def run(options: Any, _: Path | None) -> int | None:
        status: int | None = getattr(import_module(f"janus_cli.{module}"), function)(options)
        return status

    return run


def _up(options: UpOptions, config: Path | None) -> int:
    from janus_cli.up import up

    return up(options, config)


def _down(options: DownOptions, _: Path | None) -> None:
    from janus.cluster.down import stop_cluster

    stop_cluster(options.name, timeout_s=options.timeout_s)


def _chaos() -> typer.Typer:
    from janus_cli import chaos

    app = typer.Typer(name="chaos", help="Break a cluster on purpose, under load.", no_args_is_help=True)
    add_command(app, "run", chaos.ChaosRunOptions, lambda options, _: chaos.run(options))
    add_command(app, "list", chaos.ChaosListOptions, lambda _options, _: chaos.show_list())
    return app


def _trace() -> typer.Typer:
    from janus_cli import trace

    app = typer.Typer(name="trace", help="What the router chose: export, import, show.", no_args_is_help=True)
    add_command(app, "export", trace.TraceExportOptions, lambda options, _: trace.export(options))
    add_command(app, "import", trace.TraceImportOptions, lambda options, _: trace.import_(options))
    add_command(app, "show", trace.TraceShowOptions, lambda options, _: trace.show(options))
    return app


def _models() -> typer.Typer:
    from janus_cli import models

    app = typer.Typer(name="models", help="Models: known ones, those on disk, random weights.", no_args_is_help=True)
    add_command(app, "list", models.ModelsListOptions, lambda options, _: models.show_list(options))
    add_command(app, "inspect", models.ModelsInspectOptions, lambda options, _: models.inspect(options))
    add_command(app, "random", models.ModelsRandomOptions, lambda options, _: models.random(options))
    return app


def _version(_options: VersionOptions, _: Path | None) -> None:
    typer.echo(f"janus {janus.__version__}")


def build_app() -> typer.Typer:
    """Return the application with all commands."""
    app = typer.Typer(
        name="janus",
        help="Serve Mixture-of-Experts models with attention and experts in separate processes that talk over UCX.",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode="rich",
    )
    add_command(app, "up", UpOptions, _up)
    add_command(app, "status", StatusOptions, _of("status", "status"))
    add_command(app, "scale", ScaleOptions, _of("operate", "scale"))
    add_command(app, "drain", DrainOptions, _of("operate", "drain"))
    add_command(app, "restart", RestartOptions, _of("operate", "restart"))
    add_command(app, "down", DownOptions, _down)
    add_command(app, "chat", ChatOptions, _of("chat", "chat"))
    add_command(app, "doctor", DoctorOptions, _of("doctor", "doctor"))
    add_command(app, "demo", DemoOptions, _of("demo", "demo"))
    app.add_typer(_chaos(), name="chaos")
    app.add_typer(_trace(), name="trace")
    app.add_typer(_models(), name="models")
    add_command(app, "profile", ProfileOptions, _of("profile", "profile"))
    add_command(app, "plan", PlanOptions, _of("plan", "plan"))
    add_command(app, "simulate", SimulateOptions, _of("simulate", "simulate"))
    add_command(app, "version", VersionOptions, _version)
    return app


def main() -> NoReturn:
    """Entry point of ``janus``."""
    run_app(build_app(), prog="janus")


if __name__ == "__main__":
    main()
