"""A child process that answers one JSON line with one JSON line: the load client, and transformers, live in such."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

REPOSITORY = Path(__file__).resolve().parents[2]


class WorkerError(RuntimeError):
    """The child ended, or said that it failed."""


class Worker:
    """Owns one child process."""

    def __init__(self, module: str, *arguments: str, environ: Mapping[str, str], log: Path) -> None:
        self._module = module
        self._log = log
        with log.open("ab") as sink:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=sink,
                env=dict(environ),
                cwd=REPOSITORY,
                text=True,
            )

    @property
    def pid(self) -> int:
        """Process id of the child."""
        return self._process.pid

    def ask(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """Send a job and return its result.

        Raises:
            WorkerError: the child reported a failure, or is gone.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise WorkerError(f"{self._module} ended with status {self._process.wait()}; its log is {self._log}")
        result: dict[str, Any] = json.loads(line)
        if "error" in result:
            raise WorkerError(f"{self._module}: {result['error']}")
        return result

    def close(self) -> None:
        """End the child: it leaves at the end of its input."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


def serve(handle: Callable[[dict[str, Any]], dict[str, Any]], jobs: TextIO = sys.stdin) -> None:
    """The child's side: answer every line of standard input until it ends."""
    answers = sys.stdout
    sys.stdout = sys.stderr  # what libraries print must not look like an answer
    for line in jobs:
        try:
            result = handle(json.loads(line))
        except Exception as error:
            result = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(result) + "\n")
        answers.flush()
