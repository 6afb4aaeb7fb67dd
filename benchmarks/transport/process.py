"""``python -m benchmarks.transport.process STACK LOOP [HOST:PORT]``: one end of a stack, alone in a process.

Without an address it serves. With one it takes lines "SIZE COUNT" from stdin, and answers each with the seconds of the
round trips and of processor time that they took.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time

import structlog
from benchmarks.transport.pingpong import client_of, run_loop, serve

#: The first round trips after a pause or a change of size are not like the others.
_WARM_UP = 3


async def _client(stack: str, address: str) -> None:
    host, _, port = address.rpartition(":")
    client = await client_of(stack, host, int(port))
    # Read in a thread: a link has heartbeats to answer meanwhile.
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        size, count = map(int, line.split())
        await client.trips(size, _WARM_UP)
        cpu_s = time.process_time()
        samples = await client.trips(size, count)
        print(json.dumps({"trips_s": samples, "cpu_s": time.process_time() - cpu_s}), flush=True)


def main() -> None:
    """Command line."""
    structlog.configure(
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
    )
    stack, loop, *address = sys.argv[1:]
    if address:
        run_loop(_client(stack, address[0]), loop)
    else:
        serve(stack, loop)


if __name__ == "__main__":
    main()
