"""Who used the cores meanwhile, and how long the cluster's processes waited for one because of others.

The kernel keeps for every thread how long it ran, and how long it could have run and had to wait (Linux: schedstat).
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

_PROC = Path("/proc")


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """The busiest thread of a process, during some time: seconds that it ran, and that it waited for a core."""

    ran_s: float = 0.0
    waited_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cores:
    """Use of the machine during some time."""

    #: Cores that processes which do not belong to the measurement kept busy.
    others: float
    #: By process id: what waiting is owed to those, and not to the measurement's own processes.
    turns: dict[int, Turn]


class CoreMeter:
    """Measures from its creation on, or from the last ``read``."""

    def __init__(self, pids: Iterable[int]) -> None:
        """``pids``: processes that belong to the measurement, as this one does."""
        self._processes = {pid: psutil.Process(pid) for pid in (psutil.Process().pid, *pids)}
        self._cores = psutil.cpu_count() or 1
        self._before = self._look()

    def read(self) -> Cores:
        """What happened since, and begin anew."""
        (then, busy_then, own_then, threads_then), now = self._before, self._look()
        self._before = now
        wall = max(now[0] - then, 1e-9)
        own = {pid: max(0.0, now[2][pid] - own_then.get(pid, 0.0)) / wall for pid in now[2]}
        all_own = sum(own.values())
        others = max(0.0, (now[1] - busy_then) / wall - all_own)
        turns = {}
        for pid, threads in now[3].items():
            before = threads_then.get(pid, {})
            grown = [_difference(turn, before.get(thread)) for thread, turn in threads.items()]
            busiest = max(grown, key=lambda turn: turn.ran_s, default=Turn())
            # Processes of our own are in the way only when they have all other cores at once.
            rivals = all_own - own[pid]
            own_part = rivals * min(1.0, rivals / self._cores) ** (self._cores - 1)
            share = others / (others + own_part) if others > 0 else 0.0
            turns[pid] = Turn(ran_s=busiest.ran_s, waited_s=busiest.waited_s * share)
        return Cores(others=others, turns=turns)

    def _look(self) -> tuple[float, float, dict[int, float], dict[int, dict[str, Turn]]]:
        """The clock, seconds that cores were busy, seconds that own processes ran, and their threads."""
        times = psutil.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        # Guests' time is part of users' time.
        busy = sum(times) - idle - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        own = {}
        for pid, process in self._processes.items():
            try:
                used = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            own[pid] = used.user + used.system
        return time.perf_counter(), busy, own, {pid: _threads(pid) for pid in own}


def ran_s(pid: int) -> float:
    """Seconds that all threads of a process have run so far; to the clock's tick where the kernel says no more."""
    threads = _threads(pid)
    if threads:
        return sum(turn.ran_s for turn in threads.values())
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def _threads(pid: int) -> dict[str, Turn]:
    """Every thread's times so far; empty where the kernel does not say."""
    found = {}
    for path in (_PROC / str(pid) / "task").glob("*/schedstat"):
        try:
            ran, waited, _ = path.read_text(encoding="ascii").split()
        except (OSError, ValueError):  # it has ended meanwhile
            continue
        found[path.parent.name] = Turn(ran_s=int(ran) / 1e9, waited_s=int(waited) / 1e9)
    return found


def _difference(now: Turn, before: Turn | None) -> Turn:
    before = before or Turn()
    return Turn(ran_s=now.ran_s - before.ran_s, waited_s=now.waited_s - before.waited_s)
