"""Brings a cluster to other numbers of instances, whatever runs it: what the autoscaler acts through.

``ControlSocketScaler`` asks the ``janus up`` that runs the cluster. ``CommandScaler`` runs a command of the user's, for
whatever else does: docker compose, Kubernetes, Ray.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shlex
import signal
from pathlib import Path
from typing import Any, Protocol

import httpx

from janus.core.scaling.contract import Counts
from janus.errors import ConfigError, JanusError
from janus.runtime.sockets import unix_address

_CONNECT_TIMEOUT_S = 5.0
#: Between the polite and the impolite end of a command.
_GRACE_S = 2.0
#: What is kept of a command's output, and shown of it.
_MAX_OUTPUT_BYTES = 64 << 10
_SHOWN_LINES = 3


class ScalingRefused(JanusError):
    """It is not possible as asked, or not now: another operation runs, or the experts would have no place."""


class ScalingFailed(JanusError):
    """It was tried, and did not work; the cluster has the numbers that it had, as far as the backend can tell."""


class ScalingTimedOut(ScalingFailed):
    """It took longer than it may."""


class Scaler(Protocol):
    """Changes the numbers of instances. One call at a time."""

    @property
    def name(self) -> str:
        """In a word, for logs: ``janus up``, ``command``."""

    @property
    def awaits(self) -> bool:
        """Whether ``scale`` returns when the instances serve or have left, and keeps the controller's numbers.

        If not, it returns when they have been asked for: whoever calls tells the controller, and waits.
        """

    async def scale(self, wanted: Counts, *, timeout_s: float) -> None:
        """Bring the cluster to ``wanted``. A cancelled call leaves behind what had been done by then.

        Raises:
            ScalingRefused, ScalingFailed, ScalingTimedOut: see there.
        """


class ControlSocketScaler:
    """A ``Scaler`` over the control socket of ``janus up`` (``janus.cluster.control``)."""

    name = "janus up"
    awaits = True

    def __init__(self, path: Path) -> None:
        self._path = path

    async def scale(self, wanted: Counts, *, timeout_s: float) -> None:
        """See ``Scaler.scale``."""
        body: dict[str, int] = {"attention": wanted.attention}
        if wanted.experts:
            body["experts"] = wanted.experts
        try:
            async with asyncio.timeout(timeout_s):
                await self._ask(body)
        except TimeoutError as error:
            raise ScalingTimedOut(f"janus up has not brought the cluster to {wanted} in {timeout_s:g} s") from error
        except (httpx.HTTPError, OSError) as error:
            raise ScalingFailed(f"janus up does not answer at {self._path} ({type(error).__name__})") from error

    async def _ask(self, body: dict[str, int]) -> None:
        with unix_address(self._path) as address:
            # There is no TLS on a Unix socket, and to load certificates takes 20 ms of the loop.
            transport = httpx.AsyncHTTPTransport(uds=address, verify=False)
            timeout = httpx.Timeout(_CONNECT_TIMEOUT_S, read=None)
            async with (
                httpx.AsyncClient(transport=transport, base_url="http://janus", timeout=timeout) as client,
                client.stream("POST", "/scale", json=body) as response,
            ):
                if response.status_code != 200:
                    raise ScalingRefused(_message(json.loads(await response.aread())))
                async for line in response.aiter_lines():
                    event = json.loads(line)
                    if "error" in event:
                        raise ScalingFailed(_message(event))
                    if "done" in event:
                        return
        raise ScalingFailed("janus up ended before the cluster was scaled")


class CommandScaler:
    """A ``Scaler`` that runs a command, with ``{attention}`` and ``{experts}`` replaced by the numbers wanted.

    The command is no shell's: write ``sh -c '...'`` where one is needed. It should return soon, with status 0, and do
    nothing where the numbers are what is asked for.
    """

    name = "command"
    awaits = False

    def __init__(self, template: str) -> None:
        """Raises ConfigError when it cannot be taken apart into words."""
        try:
            self._words = shlex.split(template)
        except ValueError as error:
            raise ConfigError("--scale-command", f"{template!r}: {error}", "balance its quotes") from error
        if not self._words:
            raise ConfigError("--scale-command", "is empty", "give a command, e.g. scale.sh {attention} {experts}")

    def arguments(self, wanted: Counts) -> list[str]:
        """Return the command for these numbers."""
        numbers = {"{attention}": str(wanted.attention), "{experts}": str(wanted.experts)}
        return [_replaced(word, numbers) for word in self._words]

    async def scale(self, wanted: Counts, *, timeout_s: float) -> None:
        """See ``Scaler.scale``."""
        arguments = self.arguments(wanted)
        shown = shlex.join(arguments)
        try:
            process = await asyncio.create_subprocess_exec(
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise ScalingFailed(f"{shown}: cannot be run ({error.strerror})") from error
        output = bytearray()
        try:
            async with asyncio.timeout(timeout_s):
                await _read(process, output)
                status = await process.wait()
        except TimeoutError as error:
            raise ScalingTimedOut(f"{shown}: still runs after {timeout_s:g} s{_tail(output)}") from error
        finally:
            await _end(process)
        if status != 0:
            raise ScalingFailed(f"{shown}: ended with status {status}{_tail(output)}")


def _replaced(word: str, numbers: dict[str, str]) -> str:
    for name, number in numbers.items():
        word = word.replace(name, number)
    return word


async def _read(process: asyncio.subprocess.Process, output: bytearray) -> None:
    """Collect what the command says; of more than can be kept, the end."""
    assert process.stdout is not None
    while chunk := await process.stdout.read(4096):
        output += chunk
        del output[:-_MAX_OUTPUT_BYTES]


async def _end(process: asyncio.subprocess.Process) -> None:
    """Leave no process of the command behind."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_GRACE_S):
                await process.wait()


def _tail(output: bytes | bytearray) -> str:
    lines = bytes(output).decode(errors="replace").strip().splitlines()[-_SHOWN_LINES:]
    return ": " + " / ".join(line.strip() for line in lines) if lines else ", and says nothing"


def _message(event: dict[str, Any]) -> str:
    return str(event["error"].get("message", "no reason is given"))
