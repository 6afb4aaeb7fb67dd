"""The contract of what starts instances. Local subprocesses implement it here (``local.py``)."""

from __future__ import annotations

from typing import Protocol

from janus.cluster.instances import Exited, InstanceSpec, Started


class Launcher(Protocol):
    """Starts and stops instances, somewhere. Names are unique; a name may be started again once it has ended."""

    async def start(self, spec: InstanceSpec, *, timeout_s: float) -> Started:
        """Start an instance and return when it listens.

        A cancelled call leaves the process running until ``stop`` or ``close``.

        Raises:
            LaunchError: it ended or was silent for ``timeout_s``; carries its last log lines.
        """

    async def stop(self, name: str, *, timeout_s: float) -> None:
        """Ask the instance to drain and leave, and end it by force after ``timeout_s``; returns when it is gone."""

    def kill(self, name: str) -> None:
        """End the instance at once, by force; ``watch`` reports it as it does any other death."""

    async def watch(self) -> Exited:
        """Return the next instance that ended without ``stop``."""

    async def close(self) -> None:
        """End every instance now, by force; returns when all are gone."""
