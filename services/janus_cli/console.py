"""How the commands speak: progress on stderr, results on stdout."""

from __future__ import annotations

import sys

import structlog
from rich.console import Console


def tell(message: str) -> None:
    """Show one line of progress."""
    print(f"janus: {message}", file=sys.stderr, flush=True)


def output() -> Console:
    """Return the console that results are printed on; tables keep their width when it is no terminal."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=120)


def logs_on_stderr() -> None:
    """Let what the code underneath logs not get between results: a command that prints JSON prints nothing else."""
    structlog.configure(logger_factory=lambda *_: structlog.PrintLogger(sys.stderr))
