"""A name server that does not answer keeps nobody waiting for longer than a link may take."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from janus.errors import DeadlineExceeded
from janus.transport import TransportKind, connect
from tests.transport.helpers import DEADLINE_S, SECRET, Recorder, identity


@pytest.mark.parametrize("kind", ["tcp", "ucx"])
async def test_a_name_that_is_not_resolved_in_time_is_the_links_deadline(
    kind: TransportKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(*given: Any, **named: Any) -> Any:
        return await asyncio.get_running_loop().create_future()

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", never)
    async with asyncio.timeout(DEADLINE_S):
        with pytest.raises(DeadlineExceeded, match=r"nowhere\.example:7700.* within 0\.05 s"):
            await connect(
                kind,
                "nowhere.example",
                7700,
                identity=identity(),
                secret=SECRET,
                handler=Recorder(),
                timeout_s=0.05,
            )
