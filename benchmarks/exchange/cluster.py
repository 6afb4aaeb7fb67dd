"""Attention and expert instances on the nodes of a testbed, under the benchmark's command."""

from __future__ import annotations

import json
import os
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

    def __init__(self, bed: Testbed, *, attention: int, experts: int, hidden: int, nodes: int = 2) -> None:
        self._bed = bed
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
        return [name for name in self._nodes if name.startswith("attention")]

    def __enter__(self) -> Self:
        try:
            ports = self._start()
            members = [
                {
                    "role": name.split("-", maxsplit=1)[0],
                    "instance": name,
                    "node": node,
                    "host": self._bed.address(node),
                    "port": ports[name],
                    "incarnation": name,
                    "state": "ready",
                }
                for name, node in self._nodes.items()
            ]
            experts = [name for name in self._nodes if name.startswith("expert")]
            self.ask({"do": "connect", "members": members, "table": placement_table(experts, self._nodes)})
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _start(self) -> dict[str, int]:
        for name, node in self._nodes.items():
            given = {
                "role": name.split("-", maxsplit=1)[0],
                "name": name,
                "node": node,
                "host": self._bed.address(node),
                "hidden": self._hidden,
            }
            self._processes[name] = self._bed.popen(
                node,
                [sys.executable, "-m", "benchmarks.exchange.worker", json.dumps(given)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log(name),
                cwd=_REPOSITORY,
            )
        return {name: self._answer(name)["port"] for name in self._nodes}

    def _log(self, name: str) -> IO[bytes]:
        self._logs.mkdir(parents=True, exist_ok=True)
        return (self._logs / f"{name}.log").open("wb")

    def ask(self, command: dict[str, Any], names: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
        """Give ``names`` (all, unless given) a command at the same time; returns their answers."""
        asked = list(names) or list(self._nodes)
        line = json.dumps(command).encode() + b"\n"
        for name in asked:
            pipe(self._processes[name].stdin).write(line)
            pipe(self._processes[name].stdin).flush()
        return {name: self._answer(name) for name in asked}

    def _answer(self, name: str) -> dict[str, Any]:
        line = pipe(self._processes[name].stdout).readline()
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
            process.wait(max(0.1, deadline - time.monotonic()))
        self._processes.clear()


def pipe(found: IO[bytes] | None) -> IO[bytes]:
    """Return a pipe that is there."""
    assert found is not None
    return found
