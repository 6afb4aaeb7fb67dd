"""What the run ran on, what its processes used, and whether anybody else used the cores meanwhile."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
#: Flags that decide how fast bf16 and f32 matrix products can be.
_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "avx512_vnni", "amx_tile", "amx_bf16")


def hardware(cores: int) -> dict[str, Any]:
    """Return the machine in words and numbers."""
    info = _cpuinfo()
    flags = set(info.get("flags", "").split())
    return {
        "cpu": info.get("model name", platform.processor()),
        "cpu_family_model": f"{info.get('vendor_id', '')} {info.get('cpu family', '')}/{info.get('model', '')}",
        "cores_used": cores,
        "cores": os.cpu_count(),
        "flags": {flag: flag in flags for flag in _FLAGS},
        "l2_l3_cache": _caches(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def _cpuinfo() -> dict[str, str]:
    pairs = (line.partition(":") for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _caches() -> dict[str, str]:
    found = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level = (index / "level").read_text().strip()
        if level in ("2", "3"):
            shared = (index / "shared_cpu_list").read_text().strip()
            found[f"L{level}"] = f"{(index / 'size').read_text().strip()} shared by cores {shared}"
    return found


def commit(repository: Path) -> str:
    """Return the commit that is checked out, marked when the sources differ from it."""
    head = _git(repository, "rev-parse", "--short=12", "HEAD")
    # The result file itself, and other benchmarks', do not change what is measured.
    changed = _git(repository, "status", "--porcelain", "--untracked-files=no", "--", "src", "services", "kernels")
    return f"{head}+changes" if changed else head


def _git(repository: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(repository), *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else "unknown"


@dataclass(frozen=True, slots=True)
class CpuUse:
    """CPU seconds in an interval."""

    wall_s: float
    #: Of the processes that were named, by name.
    own_s: dict[str, float]
    #: Of everything else on the machine, kernel threads and stolen time included.
    others_s: float

    @property
    def others_cores(self) -> float:
        """How many cores others kept busy, on average."""
        return self.others_s / self.wall_s if self.wall_s > 0 else 0.0


class CpuMeter:
    """Measures from its creation to ``read``.

    ``processes``: name -> process ids. Their children count with them, unless they have a name of their own.
    """

    def __init__(self, processes: dict[str, list[int]]) -> None:
        named = {pid for pids in processes.values() for pid in pids}
        self._processes = {name: _with_children(pids, named) for name, pids in processes.items()}
        self._own = self._read_own()
        self._busy = _busy_s()
        self._started = time.perf_counter()

    def read(self) -> CpuUse:
        """What was used since the creation."""
        wall = time.perf_counter() - self._started
        busy, own = _busy_s() - self._busy, self._read_own()
        used = {name: own[name] - self._own[name] for name in own}
        return CpuUse(wall, used, max(0.0, busy - sum(used.values())))

    def _read_own(self) -> dict[str, float]:
        return {name: sum(map(_process_s, pids)) for name, pids in self._processes.items()}


def _with_children(pids: Iterable[int], named: set[int]) -> list[int]:
    family = list(pids)
    for pid in pids:
        family += [child.pid for child in psutil.Process(pid).children(recursive=True) if child.pid not in named]
    return family


def _process_s(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def _busy_s() -> float:
    user, nice, system, _idle, _iowait, irq, softirq, steal, *_ = map(
        int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    )
    return (user + nice + system + irq + softirq + steal) / _TICKS_PER_S


class Patience:
    """Waits for a quiet machine, for ``budget_s`` in all: on a busy one the run goes on, and says so."""

    def __init__(self, *, quiet_cores: float, budget_s: float) -> None:
        self.quiet_cores = quiet_cores
        self._left_s = budget_s

    @property
    def left(self) -> bool:
        """Whether there is budget left."""
        return self._left_s > 0

    def spend(self, seconds: float) -> None:
        """Charge a measurement that has to be made again."""
        self._left_s -= seconds

    def wait(self, sample_s: float = 0.5) -> float:
        """Wait until others use no more than ``quiet_cores``; returns how many they used in the last look.

        Engines that wait for requests count as others too when they spin, which is as it should be.
        """
        while True:
            meter = CpuMeter({})
            time.sleep(sample_s)
            busy = meter.read().others_cores
            if busy <= self.quiet_cores or not self.left:
                return busy
            self.spend(sample_s)
