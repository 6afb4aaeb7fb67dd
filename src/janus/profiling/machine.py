"""What the measurement ran on, and what else ran there meanwhile."""

from __future__ import annotations

import datetime
import platform
import re
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

import janus

_SOURCES = Path(__file__).parents[1]


def cpu_name() -> str:
    """The processor's name."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    fields: dict[str, str] = dict(re.findall(r"^(model name|cpu family|model)\s*:\s*(.+)$", text, re.MULTILINE))
    family = f" (family {fields['cpu family']}, model {fields['model']})" if "cpu family" in fields else ""
    return fields.get("model name", platform.processor()) + family


def slug() -> str:
    """The processor's name as part of a profile's name: ``amd-epyc-family-26-model-2``."""
    return re.sub(r"[^a-z0-9]+", "-", cpu_name().lower()).strip("-")


def commit() -> str:
    """The commit of the sources, marked when they differ from it; the version where there is no repository."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(_SOURCES), *arguments], capture_output=True, text=True, check=False, timeout=10
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    head = git("rev-parse", "--short=12", "HEAD")
    if not head:
        return f"janus {janus.__version__}"
    return head + ("+changes" if git("status", "--porcelain", "--untracked-files=no", "--", ".") else "")


def today() -> str:
    """The date."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()


class OthersMeter:
    """CPU time that everything but the named processes and this one uses, from its creation on."""

    def __init__(self, pids: Iterable[int]) -> None:
        self._own = [psutil.Process(), *(psutil.Process(pid) for pid in pids)]
        self._before = self._read()

    def cores(self) -> float:
        """Return how many cores they kept busy, on average."""
        before, after = self._before, self._read()
        wall = after[0] - before[0]
        return max(0.0, (after[1] - before[1]) - (after[2] - before[2])) / wall if wall > 0 else 0.0

    def _read(self) -> tuple[float, float, float]:
        """Seconds of the clock, of all cores busy, and of the own processes."""
        times = psutil.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        # guest time is part of user time
        busy = sum(times) - idle - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        own = 0.0
        for process in self._own:
            try:
                used = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            own += used.user + used.system
        return time.perf_counter(), busy, own
