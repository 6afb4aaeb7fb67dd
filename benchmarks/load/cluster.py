"""Start and stop a cluster for a measurement, with the command that users have."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import psutil

#: ``janus up`` stops its instances within its own limits; this is far beyond them.
_STOP_LIMIT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningCluster:
    """A cluster that serves requests."""

    #: Base URL, ending in ``/v1``.
    url: str
    #: The processes by instance name, ``janus`` itself included.
    processes: Mapping[str, psutil.Process]


@contextlib.asynccontextmanager
async def running_cluster(
    arguments: Sequence[str], *, environment: Mapping[str, str] | None = None, start_timeout_s: float = 180.0
) -> AsyncIterator[RunningCluster]:
    """Run ``janus up`` with ``arguments``; on the way out send SIGINT and wait.

    Raises:
        RuntimeError: it ended, or was not ready in time, or did not stop cleanly.
    """
    command = [sys.executable, "-m", "janus_cli", "up", *arguments]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, env={**os.environ, **(environment or {})}
    )
    try:
        yield RunningCluster(url=await _url(process, start_timeout_s), processes=_processes(process.pid))
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGINT)
        async with asyncio.timeout(_STOP_LIMIT_S):
            status = await process.wait()
    if status != 0:
        raise RuntimeError(f"janus up ended with status {status}")


async def _url(process: asyncio.subprocess.Process, timeout_s: float) -> str:
    assert process.stdout is not None
    try:
        async with asyncio.timeout(timeout_s):
            line = (await process.stdout.readline()).decode()
    except TimeoutError as error:
        raise RuntimeError(f"janus up was not ready within {timeout_s:g} s") from error
    if not line.startswith("ready: "):
        raise RuntimeError(f"janus up ended before it was ready: {line!r}")
    return line.removeprefix("ready: ").strip()


def _processes(pid: int) -> dict[str, psutil.Process]:
    """Children know their instance name from ``--name``."""
    processes = {"janus": psutil.Process(pid)}
    for child in processes["janus"].children(recursive=True):
        words = child.cmdline()
        for flag, value in pairwise(words):
            if flag == "--name":
                processes[value] = child
    return processes
