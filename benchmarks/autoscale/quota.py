"""Gives every attention and expert instance a share of a core of its own, as if each ran on a device of its own.

Instances of a local cluster share the cores, so that two are no faster than one. With a quota (cgroup, version 1 or 2)
each has so much of a core and no more; as long as all quotas together fit into the machine, capacity grows with the
number of instances.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
#: Short, so that an instance waits often and briefly; the kernel grants no quota below 1 ms.
_PERIOD_US = 10_000
_LEAST_QUOTA_US = 1_000


class QuotaError(Exception):
    """The machine gives no quotas; the message says why."""


class Quotas:
    """Control groups of this benchmark, one per process. Use as a context manager: leaving it removes them."""

    def __init__(self, cores: float) -> None:
        """``cores``: of each process, such as 0.25."""
        self._cores = cores
        self._first = _ROOT / "cpu" if (_ROOT / "cpu" / "cpu.cfs_quota_us").exists() else None
        base = self._first or _ROOT
        self._group = base / f"janus-autoscale-{os.getpid()}"
        self._held: dict[int, Path] = {}

    def __enter__(self) -> Quotas:
        try:
            if self._first is None:
                (_ROOT / "cgroup.subtree_control").write_text("+cpu")
            self._group.mkdir()
            if self._first is None:
                (self._group / "cgroup.subtree_control").write_text("+cpu")
        except OSError as error:
            raise QuotaError(f"no control group can be made in {self._group.parent}: {error.strerror}") from error
        return self

    def __exit__(self, *_: object) -> None:
        self.keep(())
        with contextlib.suppress(OSError):
            self._group.rmdir()

    def hold(self, pid: int) -> None:
        """Give a process its quota, once; one that is gone is left alone."""
        if pid in self._held:
            return
        group = self._group / str(pid)
        group.mkdir(exist_ok=True)
        quota = max(_LEAST_QUOTA_US, round(self._cores * _PERIOD_US))
        if self._first is not None:
            (group / "cpu.cfs_period_us").write_text(str(_PERIOD_US))
            (group / "cpu.cfs_quota_us").write_text(str(quota))
        else:
            (group / "cpu.max").write_text(f"{quota} {_PERIOD_US}")
        with contextlib.suppress(OSError):
            (group / "cgroup.procs").write_text(str(pid))
        self._held[pid] = group

    def keep(self, pids: Collection[int]) -> None:
        """Remove the groups of all processes but ``pids``, which have ended."""
        for pid in [pid for pid in self._held if pid not in pids]:
            with contextlib.suppress(OSError):
                self._held.pop(pid).rmdir()

    @property
    def about(self) -> str:
        """In words."""
        return f"each attention and expert instance has {self._cores:g} of a core (cgroup quota)"
