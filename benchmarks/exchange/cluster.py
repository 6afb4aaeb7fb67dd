"""Attention and expert instances on the nodes of a testbed, under the benchmark's command."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from benchmarks.exchange.worker import EXPERTS, LAYERS
from benchmarks.testbed import Testbed

_REPOSITORY = Path(__file__).parents[2]


def placement_table(experts: Sequence[str], nodes: dict[str, str]) -> dict[str, Any]:
    """Every expert once, dealt round; the same in every layer."""
    slots = [[e for e in range(EXPERTS) if e % len(experts) == i] for i in range(len(experts))]
    width = max(len(held) for held in slots)
    padded = [held + [-1] * (width - len(held)) for held in slots]
    return {
        "epoch": 1,
        "num_experts": EXPERTS,
        "instances": list(experts),
        "slots": [padded for _ in range(LAYERS)],
        "nodes": [nodes[name] for name in experts],
    }


class Workers:
    """``attention`` + ``experts`` instances, spread evenly over the testbed's nodes a0, a1, ... and e0, e1, ..."""

    def __init__(
        self,
        bed: Testbed,
        *,
        attention: int,
        experts: int,
        hidden: int,
        nodes: int = 2,
        module: str = "benchmarks.exchange.worker",
        options: dict[str, Any] | None = None,
        later: dict[str, str] | None = None,
        answer_s: float = 600.0,
    ) -> None:
        """Describe them; entering the context starts them.

        Args:
            bed: where they run.
            attention: instances.
            experts: instances.
            hidden: size of an activation.
            nodes: of each role.
            module: what every instance runs.
            options: more of what every instance is told at its start.
            later: {instance: node} of more attention instances, which start at once and are linked by ``join``.
            answer_s: how long an instance may take to answer a command.
        """
        self._bed = bed
        self._module = module
        self._options = options or {}
        self._later = dict(later or {})
        self._answer_s = answer_s
        self._ports: dict[str, int] = {}
        #: How often each was started.
        self._starts: dict[str, int] = {}
        self._nodes: dict[str, str] = {}
        for role, letter, count in (("attention", "a", attention), ("expert", "e", experts)):
            for index in range(count):
                self._nodes[f"{role}-{index}"] = f"{letter}{index * nodes // count}"
        self._hidden = hidden
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._logs = Path(tempfile.gettempdir()) / f"janus-exchange-{os.getpid()}"

    @property
    def attention(self) -> list[str]:
        """Names of the attention instances."""
        return self._of("attention")

    @property
    def experts(self) -> list[str]:
        """Names of the expert instances."""
        return self._of("expert")

    def _of(self, role: str) -> list[str]:
        return [name for name in self._nodes if name.startswith(role)]

    def __enter__(self) -> Self:
        try:
            everyone = self._nodes | self._later
            for name, node in everyone.items():
                self._start(name, node)
            for name in everyone:
                self._ports[name] = self._answer(name)["port"]
            self.connect()
        except BaseException:
            self.close()
            raise
        return self

    def connect(self) -> None:
        """Link everybody to those that they are not linked to yet, or no more."""
        members = [
            {
                "role": name.split("-", maxsplit=1)[0],
                "instance": name,
                "node": node,
                "host": self._bed.address(node),
                "port": self._ports[name],
                "incarnation": self._incarnation(name),
                "state": "ready",
            }
            for name, node in self._nodes.items()
        ]
        self.ask({"do": "connect", "members": members, "table": placement_table(self.experts, self._nodes)})

    def join(self, name: str) -> None:
        """Link one that was to come later."""
        self._nodes[name] = self._later.pop(name)
        self.connect()

    def kill(self, name: str) -> None:
        """End an instance as a crash does."""
        process = self._processes.pop(name)
        process.kill()
        _reap(process, 10)

    def restart(self, name: str) -> None:
        """Start an instance anew where it was, and link everybody to it."""
        self._start(name, self._nodes[name])
        self._ports[name] = self._answer(name)["port"]
        self.connect()

    def _incarnation(self, name: str) -> str:
        return f"{name}-{self._starts[name]}"

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _start(self, name: str, node: str) -> None:
        self._starts[name] = self._starts.get(name, 0) + 1
        given = {
            **self._options,
            "role": name.split("-", maxsplit=1)[0],
            "name": name,
            "node": node,
            "incarnation": self._incarnation(name),
            "host": self._bed.address(node),
            "hidden": self._hidden,
        }
        with self._log(name) as log:
            self._processes[name] = self._bed.popen(
                node,
                [sys.executable, "-m", self._module, json.dumps(given)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=_REPOSITORY,
            )

    def _log(self, name: str) -> IO[bytes]:
        self._logs.mkdir(parents=True, exist_ok=True)
        return (self._logs / f"{name}.log").open("ab")

    def ask(self, command: dict[str, Any], names: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
        """Give ``names`` (all, unless given) a command at the same time; returns their answers."""
        asked = list(names) or list(self._nodes)
        line = json.dumps(command).encode() + b"\n"
        for name in asked:
            pipe(self._processes[name].stdin).write(line)
            pipe(self._processes[name].stdin).flush()
        return {name: self._answer(name) for name in asked}

    def _answer(self, name: str) -> dict[str, Any]:
        stdout = pipe(self._processes[name].stdout)
        # One line per command: nothing that was read before waits in the pipe's buffer.
        if not select.select([stdout], [], [], self._answer_s)[0]:
            raise RuntimeError(
                f"{name} has not answered within {self._answer_s:g} s; its log is {self._logs / name}.log"
            )
        line = stdout.readline()
        if not line:
            code = self._processes[name].wait(10)
            raise RuntimeError(f"{name} ended with {code}; its log is {self._logs / name}.log")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End every instance."""
        for process in self._processes.values():
            process.kill()
        deadline = time.monotonic() + 10
        for process in self._processes.values():
            _reap(process, max(0.1, deadline - time.monotonic()))
        self._processes.clear()


def _reap(process: subprocess.Popen[bytes], timeout_s: float) -> None:
    process.wait(timeout_s)
    pipe(process.stdin).close()
    pipe(process.stdout).close()


def pipe(found: IO[bytes] | None) -> IO[bytes]:
    """Return a pipe that is there."""
    assert found is not None
    return found
