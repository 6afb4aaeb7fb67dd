"""Bytes from one process's device memory to another's: by CUDA IPC, by UCX, over the host, and what a copy takes.

- ``ipc``: the owner records an event, a message says so, the reader's stream waits for it and copies.
- ``ucx``: ``ucxx`` sends from device memory into device memory, by its public API.
- ``staged``: to the host, over a "shm" link, to the device.
- ``memcpy``: within the reader's device, in one process: the roof.

A turn is timed at the reader, from asking until the bytes are there, compared afterwards.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.serving.worker import REPOSITORY

WAYS = ("ipc", "ucx", "staged", "memcpy")
SIZES = (64 << 10, 1 << 20, 16 << 20, 256 << 20)
_DEVICES = "benchmarks.gpu.exchange_device"


def measure_exchange(
    *, sizes: Sequence[int], rounds: int, owner: int, reader: int, devices: str = _DEVICES
) -> Iterator[dict[str, Any]]:
    """Yield one entry per size and way. ``owner`` and ``reader`` are ordinals, and may be the same.

    Raises:
        RuntimeError: one of the two processes has failed; it has said why on stderr.
    """
    program = [sys.executable, "-m", "benchmarks.gpu.exchange_process", devices]
    ends = [subprocess.Popen([*program, str(owner)], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)]
    try:
        assert ends[0].stdout is not None
        port = ends[0].stdout.readline().strip()
        if not port:
            raise RuntimeError("the owner of the memory has failed")
        command = [*program, str(reader), port, str(rounds), *map(str, sizes)]
        ends.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY))
        assert ends[1].stdout is not None
        for _ in range(len(sizes) * len(WAYS)):
            line = ends[1].stdout.readline()
            if not line:
                raise RuntimeError("the reader of the memory has failed")
            yield {"owner": owner, "reader": reader, **json.loads(line)}
    finally:
        for end in reversed(ends):
            end.kill()
            assert end.stdout is not None
            end.stdout.close()
            end.wait()
