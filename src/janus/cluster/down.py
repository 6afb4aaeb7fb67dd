"""Stops a cluster that another process runs."""

from __future__ import annotations

import contextlib
import os
import select
import signal

from janus.cluster.state import RunDirectory
from janus.errors import JanusError


def stop_cluster(name: str, *, timeout_s: float) -> None:
    """Ask ``janus up`` of cluster ``name`` to stop and wait for its end.

    Raises:
        ConfigError: no cluster of this name runs.
        JanusError: it did not stop in time.
    """
    state = RunDirectory(name).read()
    with contextlib.ExitStack() as stack:
        try:
            pidfd = os.pidfd_open(state.pid)
        except ProcessLookupError:
            return
        stack.callback(os.close, pidfd)
        signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)  # readable once the process has ended
        if not poll.poll(timeout_s * 1000):
            raise JanusError(f"cluster {name} did not stop within {timeout_s:g} s; end it with kill -9 {state.pid}")
