"""Run a command that the kernel ends when the process that started it ends, however that one ends.

    python tied.py PARENT_PID COMMAND [ARGUMENT ...]

``janus up`` is started by people and outlives their shells; under test it must not outlive a killed test run. Its
instances end with it by themselves.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        sys.exit("the test run ended before this process was tied to it")
    os.execv(command[0], command)  # the tie survives exec


if __name__ == "__main__":
    main()
