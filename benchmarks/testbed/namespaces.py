"""Network namespaces that carry their owner's name, so that those of a dead owner can be told and taken away.

A namespace is called ``janus-<pid>-<start>-<serial>-<node>``: the owner's process id, its start time in clock ticks
(a process id is used again one day, the pair is not), which testbed of that process, and the node.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.testbed.spec import TestbedError

DIRECTORY = Path("/run/netns")
_NAME = re.compile(r"janus-(\d+)-(\d+)-(\d+)-([a-z][a-z0-9]*)")
_COMMAND_TIMEOUT_S = 20
_KILL_TIMEOUT_S = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """A process, now or in the past.

    Attributes:
        pid: its process id.
        start: when it started, in clock ticks since boot.
    """

    pid: int
    start: int

    def alive(self) -> bool:
        return start_time(self.pid) == self.start


@dataclass(frozen=True, slots=True, kw_only=True)
class Name:
    """A namespace of a testbed."""

    owner: Owner
    serial: int
    node: str

    def __str__(self) -> str:
        return f"janus-{self.owner.pid}-{self.owner.start}-{self.serial}-{self.node}"

    @property
    def path(self) -> Path:
        return DIRECTORY / str(self)


def parse(text: str) -> Name | None:
    """Return the parts of a namespace's name; None if it is none of ours."""
    match = _NAME.fullmatch(text)
    if match is None:
        return None
    pid, start, serial = (int(part) for part in match.groups()[:3])
    return Name(owner=Owner(pid=pid, start=start), serial=serial, node=match.group(4))


def start_time(pid: int) -> int | None:
    """When process ``pid`` started, in clock ticks since boot; None if there is none, or only its remains."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat[stat.rindex(")") + 2 :].split()  # the name before it may contain anything
    return None if fields[0] in "ZX" else int(fields[19])


def this_process() -> Owner:
    start = start_time(os.getpid())
    assert start is not None
    return Owner(pid=os.getpid(), start=start)


def existing() -> list[Name]:
    """Every testbed's namespaces on this machine, by name."""
    if not DIRECTORY.is_dir():
        return []
    return [name for entry in sorted(DIRECTORY.iterdir()) if (name := parse(entry.name)) is not None]


def run(argv: Sequence[str], text: str = "") -> str:
    """Run a command and return what it printed.

    Raises:
        TestbedError: it failed; the message has its last words.
    """
    try:
        done = subprocess.run(argv, input=text, capture_output=True, text=True, check=False, timeout=_COMMAND_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise TestbedError(f"cannot run {argv[0]}: {error}") from error
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())[-500:]
        raise TestbedError(f"{' '.join(argv)}: {said or f'exit status {done.returncode}'}")
    return done.stdout


def remove(names: Iterable[Name]) -> list[Name]:
    """Kill what runs in the namespaces and remove them; return those that were there. Others may be at it, too."""
    present = [name for name in names if name.path.exists()]
    _kill_all(present)
    for name in present:
        try:
            run(["ip", "netns", "delete", str(name)])
        except TestbedError:
            if name.path.exists():
                raise
    return present


def reclaim() -> list[Name]:
    """Remove the namespaces, and kill the processes in them, of owners that are no more; return what was there."""
    return remove([name for name in existing() if not name.owner.alive()])


def _kill_all(names: Sequence[Name]) -> None:
    """Kill every process in the namespaces, whoever started it."""
    deadline = time.monotonic() + _KILL_TIMEOUT_S
    while pids := {pid for name in names for pid in processes(name)}:
        if time.monotonic() > deadline:
            raise TestbedError(f"processes {sorted(pids)} do not die; they keep {', '.join(map(str, names))}")
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.005)  # the kernel tells nobody but a parent of a death


def processes(name: Name) -> list[int]:
    """Ids of the processes in a namespace, this one aside; [] if the namespace is gone."""
    try:
        inode = name.path.stat()
    except FileNotFoundError:
        return []
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        try:
            its = (entry / "ns" / "net").stat()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        if (its.st_dev, its.st_ino) == (inode.st_dev, inode.st_ino):
            found.append(int(entry.name))
    return found
