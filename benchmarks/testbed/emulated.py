"""The links between nodes where the kernel has no netem: TUN devices and a program between them (``switch/``)."""

from __future__ import annotations

import os
import select
import subprocess
import threading
import time
from collections.abc import Sequence
from itertools import product
from typing import IO

from benchmarks.testbed import compiled
from benchmarks.testbed.namespaces import Name
from benchmarks.testbed.spec import LinkSpec, LinkTraffic, TestbedError

#: Of a port. Several times what the TCP connections of a testbed keep in flight, as a loss costs 200 ms.
QUEUE_BYTES = 64 << 20
_ANSWER_TIMEOUT_S = 20.0
_EXIT_TIMEOUT_S = 5.0


class EmulatedLinks:
    """Owns the switch program, and with it the device ``net0`` of every node."""

    name = "emulated"

    def __init__(self, names: Sequence[Name], addresses: Sequence[str], spec: LinkSpec) -> None:
        self._nodes = [name.node for name in names]
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [
                str(compiled.switch()),
                str(os.getpid()),
                str(spec.latency_ns),
                str(spec.bits_per_s),
                str(QUEUE_BYTES),
                *(f"{address}={name.path}" for name, address in zip(names, addresses, strict=True)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
        )
        self._unread = b""
        try:
            self._expect("ready")
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """The switch's process id, for its CPU time."""
        return self._process.pid

    def set_link(self, spec: LinkSpec) -> None:
        self._command(f"link {spec.latency_ns} {spec.bits_per_s}")

    def cut(self, node: str) -> None:
        self._command(f"cut {self._nodes.index(node)}")

    def heal(self, node: str) -> None:
        self._command(f"heal {self._nodes.index(node)}")

    def traffic(self) -> dict[tuple[str, str], LinkTraffic]:
        with self._lock:
            self._send("traffic")
            numbers = [int(word) for word in self._line().split()]
        triples = zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True)
        return {
            (source, destination): LinkTraffic(packets=packets, bytes=nbytes, dropped=dropped)
            for (source, destination), (packets, nbytes, dropped) in zip(
                product(self._nodes, self._nodes), triples, strict=True
            )
            if source != destination
        }

    def close(self) -> None:
        """End the program and wait for its end. May be called twice."""
        self._process.terminate()  # it has nothing to save
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()
        try:
            self._process.wait(_EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _command(self, line: str) -> None:
        with self._lock:
            self._send(line)
            self._expect("ok")

    def _send(self, line: str) -> None:
        try:
            _pipe(self._process.stdin).write(line.encode() + b"\n")
        except OSError as error:
            raise TestbedError(f"the switch has ended: {self._last_words()}") from error

    def _expect(self, answer: str) -> None:
        line = self._line()
        if line != answer:
            raise TestbedError(f"the switch said {line!r} instead of {answer!r}")

    def _line(self) -> str:
        out = _pipe(self._process.stdout)
        deadline = time.monotonic() + _ANSWER_TIMEOUT_S
        while b"\n" not in self._unread:
            if not select.select([out], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TestbedError(f"no answer from the switch in {_ANSWER_TIMEOUT_S:g} s")
            data = out.read(1 << 16)
            if not data:
                raise TestbedError(f"the switch has ended: {self._last_words()}")
            self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        return line.decode()

    def _last_words(self) -> str:
        try:
            status = self._process.wait(_EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return "without a word"
        said = _pipe(self._process.stderr).read().decode(errors="replace").strip()
        return said or f"exit status {status}"


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe
