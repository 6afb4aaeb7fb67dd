"""A service that another process started ends with it, however that one ended."""

from __future__ import annotations

import ctypes
import os
import signal

from janus.errors import ConfigError

_PR_SET_PDEATHSIG = 1


def end_with_parent(parent_pid: int) -> None:
    """Have the kernel send SIGTERM to this process when its parent ends; 0 does nothing.

    Raises:
        ConfigError: ``parent_pid`` is not our parent, so it ended before we could ask for the signal.
    """
    if parent_pid == 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    # The parent may have ended between fork and prctl: then the signal will never come.
    if os.getppid() != parent_pid:
        raise ConfigError("--parent-pid", f"process {parent_pid} is not the parent", "start it from that process")
