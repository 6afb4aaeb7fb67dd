"""What the measurement ran on."""

from __future__ import annotations

import datetime
import platform
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import psutil

import janus
from janus.cluster.environment import usable_cores
from janus.config.options import DType

_SOURCES = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What was measured on, and how: observations belong together when these are the same."""

    cpu: str
    cores: int
    memory_bytes: int
    dtype: DType
    #: Of each instance; 0 = instances of a role share the cores.
    threads: int
    #: Of the last level, which cores share; 0 = not known.
    cache_bytes: int = 0

    @classmethod
    def here(cls, *, dtype: DType, threads: int) -> Conditions:
        """On this machine."""
        return cls(
            cpu=cpu_name(),
            cores=usable_cores(),
            memory_bytes=psutil.virtual_memory().total,
            dtype=dtype,
            threads=threads,
            cache_bytes=last_level_cache_bytes(),
        )

    @property
    def hardware(self) -> str:
        """The machine in words."""
        return f"{self.cpu}, {self.cores} cores, {self.memory_bytes / 2**30:.1f} GiB"

    @property
    def instances(self) -> int:
        """Instances of a role that have a device to themselves."""
        return max(1, self.cores // self.threads) if self.threads else 1

    @property
    def slug(self) -> str:
        """The processor as part of a name: ``amd-epyc-family-26-model-2``."""
        return re.sub(r"[^a-z0-9]+", "-", self.cpu.lower()).strip("-")


def last_level_cache_bytes(sysfs: Path = Path("/sys/devices/system/cpu")) -> int:
    """Bytes of the last level of cache, all of its parts together; 0 where the system does not say."""
    levels: dict[int, dict[str, int]] = {}
    for index in sysfs.glob("cpu[0-9]*/cache/index[0-9]*"):
        try:
            level, size, shared = ((index / name).read_text().strip() for name in ("level", "size", "shared_cpu_list"))
            levels.setdefault(int(level), {})[shared] = int(size.removesuffix("K")) << 10
        except (OSError, ValueError):
            return 0
    return sum(levels[max(levels)].values()) if levels else 0


def cpu_name() -> str:
    """The processor's name."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    fields: dict[str, str] = dict(re.findall(r"^(model name|cpu family|model)\s*:\s*(.+)$", text, re.MULTILINE))
    family = f" (family {fields['cpu family']}, model {fields['model']})" if "cpu family" in fields else ""
    return fields.get("model name", platform.processor()) + family


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
