"""``python -m janus.cluster.nursery FD PARENT MODULES PADDING``: loads what instances need once, and forks them.

A forked instance listens earlier than one that has to load torch for itself, costs less CPU time, and shares the
memory of what is loaded. This process stays single-threaded, touches no device, and loads neither UCX nor CuPy, so that
a fork of it is as good as a new process (``tests/cli/test_nursery.py`` checks that).

Its parent asks over a socket of packets: one JSON object ``{"module", "arguments", "environment", "fds"}`` with the
descriptors themselves, standard ones first. It answers ``{"pid"}``, with a pidfd, or ``{"problem"}``, and reports every
end as ``{"pid", "status"}``, negative for a signal. It ends with its parent, and its children end with it.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from janus.runtime.parent import end_with_parent

#: A request holds a command line and an environment.
MAX_PACKET_BYTES = 1 << 18
MAX_FDS = 16
#: Fields of /proc/self/stat, counted from 1 (man 5 proc).
_ARG_START, _ARG_END = 48, 49


class Nursery:
    """The process. ``run`` serves until its parent closes the socket."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        # Signals are turned into bytes that wake the loop; the handler itself has nothing to do.
        self._wake, wakeup = socket.socketpair()
        for end in (self._wake, wakeup):
            end.setblocking(False)
        self._wakeup = wakeup
        signal.set_wakeup_fd(wakeup.fileno())
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def run(self) -> None:
        """Fork on request and report ends, until the parent is gone."""
        while True:
            ready, _, _ = select.select([self._link, self._wake], [], [])
            if self._wake in ready:
                self._wake.recv(4096)
                self._report_ends()
            if self._link in ready:
                packet, fds, _, _ = socket.recv_fds(self._link, MAX_PACKET_BYTES, MAX_FDS)
                if not packet:
                    return
                self._begin(json.loads(packet), fds)

    def _begin(self, request: dict[str, Any], fds: list[int]) -> None:
        try:
            pid = os.fork()
        except OSError as error:  # no memory, or too many processes
            self._answer({"problem": error.strerror})
        else:
            if pid == 0:
                self._link.close()
                self._wake.close()
                become(request, fds, close=[self._wakeup])
            # It is not reaped before the loop comes round, so the number is still its own.
            pidfd = os.pidfd_open(pid)
            self._answer({"pid": pid}, [pidfd])
            os.close(pidfd)
        for fd in fds:
            os.close(fd)

    def _report_ends(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._answer({"pid": pid, "status": os.waitstatus_to_exitcode(status)})

    def _answer(self, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        try:
            socket.send_fds(self._link, [json.dumps(message).encode()], fds)
        except OSError:
            sys.exit(0)  # the parent is gone, and so will be the children


def become(request: dict[str, Any], fds: Sequence[int], *, close: Sequence[socket.socket]) -> NoReturn:
    """Turn this process, just forked, into an instance; never returns."""
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for each in close:
            each.close()
        os.setsid()
        _install(fds, request["fds"])
        os.environ.clear()
        os.environ.update(request["environment"])
        module, arguments = request["module"], request["arguments"]
        sys.argv = [module, *arguments]
        show_command([sys.executable, "-m", module, *arguments])
        gc.enable()
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _install(fds: Sequence[int], wanted: Sequence[int]) -> None:
    """Give the descriptors ``fds`` the numbers ``wanted``, inherited by what this process might start."""
    # Moved out of the way first: one may have a number that another wants.
    above = [os.dup2(fd, 200 + index) for index, fd in enumerate(fds)]
    for fd in fds:
        os.close(fd)
    for fd, number in zip(above, wanted, strict=True):
        os.dup2(fd, number, inheritable=True)
        os.close(fd)


def show_command(command: Sequence[str]) -> None:
    """Have ``ps`` show ``command`` for this process, as far as there is room: it is written over the old one.

    Where the last byte of the old one is no zero, Linux shows what is there up to the first zero (fs/proc/base.c).
    """
    # The second field, in brackets, may hold spaces.
    fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
    start, end = int(fields[_ARG_START - 3]), int(fields[_ARG_END - 3])
    room = end - start - 1
    line = b" ".join(os.fsencode(word) for word in command)[: room - 1]
    ctypes.memmove(start, line.ljust(room, b"\0") + b".", room + 1)


def main(arguments: Sequence[str]) -> int:
    """Load, say so, serve."""
    descriptor, parent_pid, modules, _padding = arguments
    link = socket.socket(fileno=int(descriptor))
    show_command([sys.executable, "-m", "janus.cluster.nursery"])
    end_with_parent(int(parent_pid))
    gc.disable()
    for module in filter(None, modules.split(",")):
        importlib.import_module(module)
    gc.freeze()
    Nursery(link).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
