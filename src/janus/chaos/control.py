"""Operations on a running cluster, through the socket in its run directory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import httpx

from janus.cluster.state import RunDirectory
from janus.errors import JanusError

#: A drain lets requests finish; a start loads torch.
_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class SocketControl:
    """Asks the process that runs ``janus up``."""

    directory: RunDirectory

    async def scale(self, *, attention: int | None, experts: int | None) -> None:
        """Have so many instances from now on; returns when they are there, and the others gone."""
        wanted = {"attention": attention, "experts": experts}
        await self._ask("scale", {name: count for name, count in wanted.items() if count is not None})

    async def drain(self, name: str) -> None:
        """Let one finish what it has and leave."""
        await self._ask("drain", {"instance": name})

    async def restart(self, name: str) -> None:
        """Drain one, and start it again."""
        await self._ask("restart", {"instance": name})

    async def _ask(self, what: str, body: dict[str, Any]) -> None:
        transport = httpx.AsyncHTTPTransport(uds=str(self.directory.path / "control.sock"))
        async with httpx.AsyncClient(transport=transport, timeout=_TIMEOUT_S, trust_env=False) as client:
            try:
                response = await client.post(f"http://janus/{what}", json=body)
            except httpx.HTTPError as error:
                problem = f"{type(error).__name__} {error}".strip()
                raise JanusError(f"cluster {self.directory.name} does not take {what}: {problem}") from error
        if response.status_code != 200:
            raise JanusError(f"cluster {self.directory.name} does not {what}: {response.text[:300]}")
