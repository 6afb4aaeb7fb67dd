"""Operations on a running cluster, through the socket in its run directory, off the loop."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from janus.cluster.control_client import ControlClient


@dataclass(frozen=True, slots=True)
class SocketControl:
    """Asks the process that runs ``janus up``; each call returns when the operation is over.

    Every call raises what ``ControlClient.ask`` does. A cancelled one lets the operation go on: it is the cluster's.
    """

    name: str

    async def scale(self, *, attention: int | None, experts: int | None) -> None:
        """Have so many instances from now on."""
        wanted = {"attention": attention, "experts": experts}
        await self._ask("scale", {name: count for name, count in wanted.items() if count is not None})

    async def drain(self, name: str) -> None:
        """Let one finish what it has and leave."""
        await self._ask("drain", {"instance": name})

    async def restart(self, name: str) -> None:
        """Replace one by a new process of its name."""
        await self._ask("restart", {"instances": [name]})

    async def rolling_restart(self) -> None:
        """Replace every one in turn."""
        await self._ask("restart", {"rolling": True})

    async def _ask(self, operation: str, body: dict[str, Any]) -> None:
        await asyncio.to_thread(ControlClient(self.name).ask, operation, body, _quiet)


def _quiet(_: str) -> None:
    """``janus up`` tells its user how an operation goes on."""
