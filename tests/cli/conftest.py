"""`janus up` as its users run it: a process, its one line on stdout, its signals."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "models" / "janus-tiny"
#: Generous: the machine that runs the tests may be busy with something else.
LIMIT_S = 100


@dataclass
class Up:
    """One `janus up`."""

    process: subprocess.Popen[str]
    environ: dict[str, str]
    ready: str
    errors: Path

    @property
    def url(self) -> str:
        return self.ready.removeprefix("ready: ").removesuffix("/v1")

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def child(self, name: str) -> psutil.Process:
        (found,) = [child for child in self.children() if name in child.cmdline()]
        return found

    def janus(self, *arguments: str, typed: str = "") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "janus_cli", *arguments]
        return subprocess.run(
            command, env=self.environ, input=typed, capture_output=True, text=True, timeout=LIMIT_S, check=False
        )

    def last_words(self, name: str) -> str:
        """What `janus up` has told, and the end of an instance's log: for whoever finds it gone."""
        logs = [log.read_text() for log in Path(self.environ["XDG_RUNTIME_DIR"]).rglob(f"{name}.log")]
        return "\n".join([self.told()[-2000:], *(log[-3000:] for log in logs)])

    def told(self) -> str:
        return self.errors.read_text()


Start = Callable[..., Up]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model, in a place where nobody writes."""
    return Path(shutil.copytree(MODEL, tmp_path_factory.mktemp("model") / "janus-tiny"))


@pytest.fixture(scope="module")
def start_cluster(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Start]:
    """Start clusters in a run directory of their own; none of their processes outlives the module."""
    started: list[Up] = []

    def start(*arguments: str, model: Path = model, wait: bool = True) -> Up:
        directory = tmp_path_factory.mktemp("up")
        environ = {**os.environ, "XDG_RUNTIME_DIR": str(directory)}
        errors = directory / "stderr"
        command = [sys.executable, "-m", "janus_cli", "up", "--model", str(model), "--port", "0", *arguments]
        with errors.open("w") as sink:
            process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=sink, text=True)
        up = Up(process, environ, "", errors)
        started.append(up)
        if wait:
            assert process.stdout is not None
            up.ready = process.stdout.readline().strip()
            assert up.ready, up.told()
        return up

    yield start
    for up in started:
        leftovers = up.children() if psutil.pid_exists(up.process.pid) else []
        up.process.kill()
        up.process.wait()
        if up.process.stdout is not None:
            up.process.stdout.close()
        _, alive = psutil.wait_procs(leftovers, timeout=20)
        for child in alive:
            child.send_signal(signal.SIGKILL)
