"""An instance in a process of its own: listens, prints its port, echoes. Dies with the process that started it."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys

import structlog

from janus.transport import LinkOptions, listen
from tests.transport.helpers import HOST, SECRET, Echo, identity

_PR_SET_PDEATHSIG = 1


async def serve(kind: str) -> None:
    listener = await listen(
        kind,  # type: ignore[arg-type]
        HOST,
        0,
        identity=identity("expert", "expert-0"),
        secret=SECRET,
        handler_factory=lambda _: Echo(),
        options=LinkOptions(silence_s=60),
    )
    print(listener.port, flush=True)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    await listener.close("SIGTERM")


if __name__ == "__main__":
    # SIGKILL also reaches a process that was stopped.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == 1:
        sys.exit("the parent is gone already")
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    asyncio.run(serve(sys.argv[1]))
