"""What each process of a cluster holds over time: memory, file descriptors, connections, threads."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import psutil


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdings:
    """One process at one moment."""

    at_s: float
    rss_mb: float
    fds: int
    #: Established TCP connections: HTTP clients, and UCX endpoints that run over TCP.
    connections: int
    threads: int


class Watch:
    """Samples ``processes`` every ``interval_s`` seconds while ``run`` runs."""

    def __init__(self, processes: Mapping[str, psutil.Process], *, interval_s: float = 2.0) -> None:
        self._processes = processes
        self._interval_s = interval_s
        self._started = time.perf_counter()
        self.seen: dict[str, list[Holdings]] = {name: [] for name in processes}

    async def run(self) -> None:
        """Sample until cancelled."""
        self._started = time.perf_counter()
        while True:
            for name, process in self._processes.items():
                self.seen[name].append(holdings(process, time.perf_counter() - self._started))
            await asyncio.sleep(self._interval_s)

    def medians(self, name: str, start_s: float, end_s: float) -> dict[str, float]:
        """Median of each figure of a process between two moments."""
        window = [held for held in self.seen[name] if start_s <= held.at_s < end_s]
        return {field: median(window, field) for field in ("rss_mb", "fds", "connections", "threads")}


def holdings(process: psutil.Process, at_s: float) -> Holdings:
    """What ``process`` holds now."""
    with process.oneshot():
        connections = [c for c in process.net_connections("tcp") if c.status == psutil.CONN_ESTABLISHED]
        return Holdings(
            at_s=at_s,
            rss_mb=round(process.memory_info().rss / 2**20, 2),
            fds=process.num_fds(),
            connections=len(connections),
            threads=process.num_threads(),
        )


def median(window: Sequence[Holdings], field: str) -> float:
    """Median of one field; 0 of nothing."""
    return statistics.median(getattr(held, field) for held in window) if window else 0.0
