"""The engines that are compared: each is started once, warmed up, and given batches of requests in turn."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Protocol

import httpx
from benchmarks.serving.checkpoints import BenchCheckpoint
from benchmarks.serving.worker import REPOSITORY, Worker, WorkerError
from benchmarks.serving.workload import Run

from janus.cluster.state import RunDirectory

_START_TIMEOUT_S = 300.0
_REQUEST_TIMEOUT_S = 600.0


class EngineError(RuntimeError):
    """An engine did not start; the message says why and where its log is."""


class Engine(Protocol):
    """One engine that serves one checkpoint in one dtype."""

    name: str

    def start(self) -> None:
        """Return when it serves. Raises EngineError."""

    def processes(self) -> dict[str, list[int]]:
        """Process ids by the part that they play."""

    def run(self, prompts: Sequence[list[int]], output_tokens: int) -> Run:
        """Generate for all prompts at once."""

    def stop(self) -> None:
        """End every process; harmless when it did not start."""


class HttpEngine:
    """An OpenAI-compatible server, started as one command."""

    def __init__(self, name: str, checkpoint: BenchCheckpoint, client: Worker, log: Path) -> None:
        self.name = name
        self._checkpoint = checkpoint
        self._client = client
        self._log = log
        self._process: subprocess.Popen[str] | None = None
        self._url = ""

    def processes(self) -> dict[str, list[int]]:
        assert self._process is not None
        return {"server": [self._process.pid]}

    def run(self, prompts: Sequence[list[int]], output_tokens: int) -> Run:
        return self._load(prompts, output_tokens)

    def stop(self) -> None:
        process = self._process
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()
        self._process = None

    def _load(self, prompts: Sequence[list[int]], output_tokens: int, **watch: Any) -> Run:
        bodies = [
            {
                "model": str(self._checkpoint.path),
                "prompt": prompt,
                "max_tokens": output_tokens,
                "temperature": 0,
                "ignore_eos": True,
            }
            for prompt in prompts
        ]
        job = {"url": f"{self._url}/v1", "bodies": bodies, "output_tokens": output_tokens}
        return Run(**self._client.ask(job | watch | {"timeout_s": _REQUEST_TIMEOUT_S}))

    def _spawn(self, command: Sequence[str], environ: dict[str, str], stdout: int | IO[bytes] | None = None) -> None:
        with self._log.open("ab") as sink:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=stdout or sink, stderr=sink, env=environ, text=True
            )

    def _wait_http(self, path: str) -> None:
        """Wait until ``GET path`` says 200."""
        deadline = time.monotonic() + _START_TIMEOUT_S
        with httpx.Client(trust_env=False, timeout=5.0) as client:
            while time.monotonic() < deadline:
                assert self._process is not None
                if self._process.poll() is not None:
                    break
                with contextlib.suppress(httpx.HTTPError):
                    if client.get(self._url + path).status_code == 200:
                        return
                time.sleep(0.25)
        self.stop()
        raise EngineError(f"{self.name} did not start; its log is {self._log}")


class JanusEngine(HttpEngine):
    """A cluster of this repository, started by ``janus up``."""

    def __init__(
        self,
        name: str,
        checkpoint: BenchCheckpoint,
        client: Worker,
        log: Path,
        *,
        dtype: str,
        arguments: Sequence[str],
        environ: dict[str, str] | None = None,
    ) -> None:
        super().__init__(name, checkpoint, client, log)
        self._arguments = ["--dtype", dtype, *arguments]
        self._extra = environ or {}
        self._cluster = f"bench-{os.getpid()}-{name}"
        self._environ = {**os.environ, **self._extra, "XDG_RUNTIME_DIR": str(log.parent)}
        #: Instance -> (process id, base URL of its operations endpoint).
        self._instances: dict[str, tuple[int, str]] = {}

    def start(self) -> None:
        command = [str(Path(sys.executable).with_name("janus")), "up", "--model", str(self._checkpoint.path)]
        command += ["--port", "0", "--name", self._cluster, "--restart", "never", *self._arguments]
        self._spawn(command, self._environ, subprocess.PIPE)
        assert self._process is not None and self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.startswith("ready: "):
            self.stop()
            raise EngineError(f"{self.name} did not start; its log is {self._log}")
        state = RunDirectory(self._cluster, environ=self._environ).read()
        self._url = state.url
        self._instances = {
            each.name: (each.pid, f"http://127.0.0.1:{each.ops_port}") for each in state.instances if each.ops_port
        }

    def processes(self) -> dict[str, list[int]]:
        assert self._process is not None
        return {"launcher": [self._process.pid], **{name: [pid] for name, (pid, _) in self._instances.items()}}

    def run_watched(self, prompts: Sequence[list[int]], output_tokens: int, *, like: Run) -> Run:
        """As ``run``, with the instances' counters read twice while it decodes; ``like`` says how long that takes."""
        decode_s = like.wall_s - like.ttft_s
        watch = {name: url for name, (_, url) in self._instances.items() if name.startswith(("attention", "expert"))}
        return self._load(
            prompts,
            output_tokens,
            watch=watch,
            watch_after_s=like.ttft_s + 0.2 * decode_s,
            watch_for_s=0.6 * decode_s,
        )


class VllmEngine(HttpEngine):
    """vLLM's CPU server, in a virtual environment of its own."""

    def __init__(
        self, checkpoint: BenchCheckpoint, client: Worker, log: Path, *, python: Path, dtype: str, cores: int
    ) -> None:
        super().__init__("vllm", checkpoint, client, log)
        self._python, self._dtype, self._cores = python, dtype, cores

    def start(self) -> None:
        port = free_port()
        self._url = f"http://127.0.0.1:{port}"
        openmp = sorted((self._python.parents[1] / "lib").rglob("libiomp5.so"))
        environ = {
            **os.environ,
            "VLLM_CPU_KVCACHE_SPACE": "2",
            "VLLM_CPU_OMP_THREADS_BIND": f"0-{self._cores - 1}",
            "LD_PRELOAD": ":".join(str(path) for path in openmp[:1]),
        }
        command = [str(self._python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(self._checkpoint.path)]
        command += ["--dtype", self._dtype, "--port", str(port), "--max-model-len", "512", "--max-num-seqs", "64"]
        self._spawn(command, environ)
        self._wait_http("/health")


class LlamaEngine(HttpEngine):
    """llama.cpp's server, with a GGUF file of the same weights."""

    def __init__(
        self, checkpoint: BenchCheckpoint, client: Worker, log: Path, *, server: Path, gguf: Path, cores: int
    ) -> None:
        super().__init__("llama.cpp", checkpoint, client, log)
        self._server, self._gguf, self._cores = server, gguf, cores

    def start(self) -> None:
        port = free_port()
        self._url = f"http://127.0.0.1:{port}"
        command = [str(self._server), "--model", str(self._gguf), "--port", str(port), "--threads", str(self._cores)]
        # 64 sequences of up to 128 tokens each.
        command += ["--parallel", "64", "--ctx-size", str(64 * 128), "--no-webui"]
        self._spawn(command, dict(os.environ))
        self._wait_http("/health")


class TransformersEngine:
    """``transformers`` generate, all requests as one batch, in a process of its own."""

    name = "transformers"

    def __init__(self, checkpoint: BenchCheckpoint, log: Path, *, dtype: str, cores: int, rehearsal: bool) -> None:
        """It tries every expert implementation at warm-up and takes the fastest for each batch size.

        Not so in a ``rehearsal``, in which its waiting threads sleep, too: on a busy machine they would spin for
        seconds per token. On a quiet one spinning, the default, is faster.
        """
        self._arguments = [str(checkpoint.path), dtype, str(cores), "default" if rehearsal else "choose"]
        self._environ = {"OMP_WAIT_POLICY": "PASSIVE"} if rehearsal else {}
        self._log = log
        self._worker: Worker | None = None

    def start(self) -> None:
        environ = {**os.environ, **self._environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": self._arguments[2]}
        module = "benchmarks.serving.transformers_worker"
        self._worker = Worker(module, *self._arguments, environ=environ, log=self._log)
        try:
            self._worker.ask({"ping": True})
        except WorkerError as error:
            raise EngineError(str(error)) from error

    def processes(self) -> dict[str, list[int]]:
        assert self._worker is not None
        return {"transformers": [self._worker.pid]}

    def run(self, prompts: Sequence[list[int]], output_tokens: int) -> Run:
        assert self._worker is not None
        return Run(**self._worker.ask({"prompts": list(prompts), "output_tokens": output_tokens}))

    def stop(self) -> None:
        if self._worker is not None:
            self._worker.close()
            self._worker = None


def free_port() -> int:
    """Return a port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def client_worker(log: Path) -> Worker:
    """Start the load client, which serves every engine of the run."""
    return Worker("benchmarks.serving.load_worker", environ={**os.environ, "PYTHONPATH": str(REPOSITORY)}, log=log)
