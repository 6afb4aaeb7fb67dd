"""A cluster as its users run it: ``janus up``, real processes, real UCX; and what tests ask of it."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import msgspec
import psutil

from janus.cluster.state import ClusterState, InstanceState, RunDirectory
from janus.messages.control import StatusReport
from tests.e2e.waiting import LIMIT_S, until

_TIED = Path(__file__).with_name("tied.py")
#: A start loads torch in every process.
_START_S = 150.0
_LOG_LINES = 12
_METRIC = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{[^}]*\})? ([-+\d.eE]+|NaN|[-+]Inf)$")


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What cluster a test wants. ``environment`` holds further options, as ``JANUS_ATTENTION_KV_BLOCKS``."""

    model: Path
    attention: int = 1
    experts: int = 1
    dtype: str = "float32"
    monolithic: bool = False
    environment: tuple[tuple[str, str], ...] = ()
    arguments: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.model.name} {self.attention}A{0 if self.monolithic else self.experts}E {self.dtype}"

    def command(self) -> list[str]:
        return [
            *(sys.executable, "-m", "janus_cli", "up", "--model", str(self.model), "--port", "0", "--threads", "1"),
            *("--attention", str(self.attention), "--experts", str(self.experts), "--dtype", self.dtype),
            *(("--monolithic",) if self.monolithic else ()),
            *self.arguments,
        ]


@dataclass(kw_only=True)
class Cluster:
    """One ``janus up``. ``close`` leaves no process of it behind, whatever state it is in."""

    spec: Spec
    directory: Path
    process: subprocess.Popen[str]
    environ: Mapping[str, str]
    base_url: str = ""
    #: Every process that was seen of it.
    seen: set[psutil.Process] = field(default_factory=set)

    @classmethod
    def launch(cls, spec: Spec, directory: Path) -> Cluster:
        """Start ``janus up`` and return at once."""
        directory.mkdir(parents=True, exist_ok=True)
        environ = {**os.environ, "XDG_RUNTIME_DIR": str(directory), **dict(spec.environment)}
        command = [sys.executable, "-S", "-E", str(_TIED), str(os.getpid()), *spec.command()]
        with (directory / "stderr").open("w") as sink:
            process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=sink, text=True, bufsize=1)
        return cls(spec=spec, directory=directory, process=process, environ=environ)

    def wait_ready(self) -> Cluster:
        """Wait for the line on stdout that says that requests are served."""
        stdout = self.process.stdout
        assert stdout is not None
        readable, _, _ = select.select([stdout], [], [], _START_S)
        line = stdout.readline().strip() if readable else ""
        self.children()
        assert line.startswith("ready: "), f"{self.spec} said {line!r} on stdout\n{self.told()}\n{self.log_tails()}"
        self.base_url = line.removeprefix("ready: ").removesuffix("/v1")
        return self

    # -- what can be seen of it ------------------------------------------------------------------------------------

    def told(self) -> str:
        """What ``janus up`` wrote to stderr."""
        return (self.directory / "stderr").read_text()

    def state(self) -> ClusterState:
        """Its state file: addresses, pids, logs."""
        return RunDirectory("default", environ=self.environ).read()

    def instance(self, name: str) -> InstanceState:
        return next(instance for instance in self.state().instances if instance.name == name)

    def names(self, role: str) -> list[str]:
        return [instance.name for instance in self.state().instances if instance.role == role]

    @property
    def secret(self) -> bytes:
        return Path(self.state().secret_file).read_bytes().strip()

    def log(self, name: str) -> str:
        """The log of one instance, over its restarts."""
        path = self.directory / "janus" / "default" / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def log_tails(self) -> str:
        """The last log lines of every instance, for reports."""
        logs = sorted((self.directory / "janus" / "default").glob("*.log"))
        tails = {log.stem: self.log(log.stem).splitlines()[-_LOG_LINES:] for log in logs}
        return "\n".join(f"{name} | {line}" for name, lines in tails.items() for line in lines)

    def status(self) -> StatusReport:
        """What the placement-controller knows, as ``janus status`` gets it."""
        report = httpx.get(f"{self.state().controller_ops}/status", timeout=LIMIT_S, trust_env=False).json()
        known = {entry.encode_name for entry in msgspec.structs.fields(StatusReport)} | {"type"}
        return msgspec.convert({key: value for key, value in report.items() if key in known}, StatusReport)

    def whole(self) -> bool:
        """Whether every instance is there and ready, and requests are served."""
        try:
            view = self.status().view
            ready = httpx.get(f"{self.base_url}/ready", timeout=LIMIT_S, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False
        return ready and not view.missing and {member.state for member in view.members} == {"ready"}

    def metric(self, instance: str, name: str) -> float:
        """The sum over its labels of one metric on an instance's operations endpoint."""
        url = f"http://127.0.0.1:{self.instance(instance).ops_port}/metrics"
        return sum(value for key, value in parse_metrics(httpx.get(url, timeout=LIMIT_S).text) if key == name)

    def metrics(self, role: str, name: str) -> float:
        """The sum of one metric over every instance of a role."""
        return sum(self.metric(instance, name) for instance in self.names(role))

    # -- processes -------------------------------------------------------------------------------------------------

    def children(self) -> list[psutil.Process]:
        """The instances' processes."""
        try:
            found: list[psutil.Process] = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            found = []
        self.seen.update(found)
        return found

    def send(self, name: str, number: signal.Signals) -> int:
        """Send a signal to an instance; returns its pid."""
        self.children()
        pid = self.instance(name).pid
        os.kill(pid, number)
        return pid

    def idle(self) -> bool:
        """Whether no server works on anything or holds any KV block."""
        return not any(
            self.metrics(role, name)
            for role, name in (
                ("gateway", "vllm:num_requests_running"),
                ("gateway", "vllm:num_requests_waiting"),
                ("attention", "vllm:num_requests_running"),
                ("attention", "vllm:num_requests_waiting"),
                ("attention", "vllm:kv_cache_usage_perc"),
                *((("expert", "janus_expert_waiting"),) if not self.spec.monolithic else ()),
            )
        )

    def wait_idle(self, within_s: float = LIMIT_S) -> None:
        until(self.idle, f"{self.spec} is idle on every server", within_s=within_s)

    def terminate(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Ask ``janus up`` to stop."""
        self.children()
        self.process.send_signal(number)

    def wait_gone(self, within_s: float) -> list[psutil.Process]:
        """Return the processes of it that are still there after ``within_s``."""
        alive: list[psutil.Process] = psutil.wait_procs(list(self.seen), timeout=within_s)[1]
        return alive

    def close(self) -> list[str]:
        """End it, in order if it can; returns what was not as it should be."""
        self.children()
        problems = []
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                if self.process.wait(LIMIT_S) != 0:
                    problems.append(f"janus up ended with status {self.process.returncode}\n{self.told()}")
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                problems.append(f"janus up did not stop within {LIMIT_S:g} s\n{self.told()}")
        if self.process.stdout is not None:
            self.process.stdout.close()
        for process in self.wait_gone(LIMIT_S):
            problems.append(f"{process} is left")
            process.kill()
        return problems


def parse_metrics(text: str) -> list[tuple[str, float]]:
    """Name and value of every sample in Prometheus's text form; labels are left out."""
    matches = (_METRIC.match(line) for line in text.splitlines())
    return [(match[1], float(match[2])) for match in matches if match]


class Clusters:
    """Clusters shared between tests: started when first asked for, the oldest closed when there are too many."""

    def __init__(self, directory: Path, *, at_most: int) -> None:
        self._directory = directory
        self._at_most = at_most
        self._running: dict[Spec, Cluster] = {}
        self._count = 0
        #: Those of single tests too, for reports.
        self.known: list[Cluster] = []

    def get(self, spec: Spec) -> Cluster:
        """A cluster that serves ``spec``, ready."""
        cluster = self._running.pop(spec, None)
        if cluster is not None and cluster.process.poll() is None:
            self._running[spec] = cluster
            return cluster
        while len(self._running) >= self._at_most:
            oldest = next(iter(self._running))
            self.close(self._running.pop(oldest))
        self._running[spec] = cluster = self.launch(spec)
        return cluster.wait_ready()

    def launch(self, spec: Spec) -> Cluster:
        """A cluster of the caller's own, which closes it; not waited for."""
        self._count += 1
        cluster = Cluster.launch(spec, self._directory / f"{self._count:03d}")
        self.known.append(cluster)
        return cluster

    def close(self, cluster: Cluster) -> None:
        """End one: with status 0 if it still runs, and nothing left of it in any case."""
        self.known.remove(cluster)
        self._running = {spec: other for spec, other in self._running.items() if other is not cluster}
        problems = cluster.close()
        assert not problems, f"{cluster.spec}: {problems}"

    def close_all(self) -> None:
        for cluster in list(self.known):
            self.close(cluster)
