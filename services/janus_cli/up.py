"""``janus up``."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from janus.cluster.supervisor import Supervisor
from janus.cluster.up import run_up
from janus.config import UpOptions
from janus.errors import LaunchError
from janus_cli.console import tell


def up(options: UpOptions, config: Path | None) -> int:
    """Run a cluster until a signal; returns the exit status."""

    async def session(supervisor: Supervisor) -> None:
        # The one line on stdout: scripts wait for it.
        print(f"ready: {supervisor.url}/v1", flush=True)
        await asyncio.get_running_loop().create_future()  # until a signal cancels it

    try:
        asyncio.run(run_up(options, config=config, tell=tell, session=session))
    except LaunchError as error:
        show_launch_error(error)
        return 1
    return 0


def show_launch_error(error: LaunchError) -> None:
    """Print which instance did not start, why, and what it said last."""
    for line in error.log_tail:
        print(f"  {error.instance} | {line}", file=sys.stderr)
    where = f"; its log is {error.log}" if error.log else ""
    print(f"error: {error.instance}: {error.problem}{where}", file=sys.stderr)
