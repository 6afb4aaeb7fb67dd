"""One model in one dtype: every engine up at once, measured in turn, round by round."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.serving.breakdown import step_breakdown
from benchmarks.serving.engines import Engine, EngineError, JanusEngine
from benchmarks.serving.machine import CpuMeter, Patience
from benchmarks.serving.workload import Run, Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How much is measured."""

    concurrencies: tuple[int, ...] = (1, 8, 32, 64)
    rounds: int = 3
    #: A cell is repeated until its batches took this long together, so that short ones are no single sample.
    min_cell_s: float = 2.0
    max_batches: int = 5
    #: How often a cell is measured again when others used twice the cores that count as quiet.
    retries: int = 2
    #: Whether to look where a cluster's steps spend their time, after the measurement.
    breakdowns: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One engine at one concurrency in one round."""

    engine: str
    concurrency: int
    round: int
    tokens_per_s: float
    tpot_ms: float
    ttft_ms: float
    batches: int
    #: CPU milliseconds per output token, by process; ``client`` is the load client.
    cpu_ms_per_token: dict[str, float]
    #: Cores that others used in the half second before, and during the measurement.
    others_cores_before: float
    others_cores: float
    #: The machine did not become quiet enough, or did not stay so, in all tries.
    disturbed: bool


@dataclass(slots=True)
class Campaign:
    """Measures ``engines`` on one checkpoint. The results are in ``cells``, ``breakdowns`` and ``skipped``."""

    engines: Sequence[Engine]
    workload: Workload
    schedule: Schedule
    patience: Patience
    client_pid: int
    label: str
    cells: list[Cell] = field(default_factory=list)
    #: Engine -> concurrency -> part -> microseconds per step.
    breakdowns: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    #: Engine -> why it was not measured.
    skipped: dict[str, str] = field(default_factory=dict)
    _seed: int = 0

    def measure(self) -> None:
        """Start every engine, run all rounds, look inside the clusters, stop every engine."""
        running: list[Engine] = []
        try:
            running.extend(engine for engine in self.engines if self._start(engine))
            for number in range(self.schedule.rounds):
                for concurrency in self.schedule.concurrencies:
                    # Each engine goes first as often as any other.
                    shift = number % len(running)
                    for engine in running[shift:] + running[:shift]:
                        self._measure_cell(engine, concurrency, number)
            for engine in running:
                if isinstance(engine, JanusEngine) and self.schedule.breakdowns:
                    self._look_inside(engine)
        finally:
            for engine in running:
                engine.stop()

    def as_json(self) -> dict[str, Any]:
        """Every raw number."""
        return {"cells": [asdict(cell) for cell in self.cells]}

    def _start(self, engine: Engine) -> bool:
        self._tell(f"starting {engine.name}")
        try:
            engine.start()
            for concurrency in self.schedule.concurrencies:
                self._batch(engine, concurrency)
        except (EngineError, RuntimeError) as error:
            engine.stop()
            self.skipped[engine.name] = str(error)
            self._tell(f"skipped {engine.name}: {error}")
            return False
        return True

    def _measure_cell(self, engine: Engine, concurrency: int, number: int) -> None:
        for _ in range(1 + self.schedule.retries):
            started = time.monotonic()
            cell = self._try_cell(engine, concurrency, number)
            if not cell.disturbed or not self.patience.left:
                break
            self.patience.spend(time.monotonic() - started)
        self.cells.append(cell)
        self._tell(
            f"round {number + 1} {engine.name:>13} N={concurrency:<3} {cell.tokens_per_s:8.1f} tokens/s  "
            f"TPOT {cell.tpot_ms:7.2f} ms  TTFT {cell.ttft_ms:7.1f} ms  others {cell.others_cores:.2f} cores"
        )

    def _try_cell(self, engine: Engine, concurrency: int, number: int) -> Cell:
        schedule = self.schedule
        before = self.patience.wait()
        meter = CpuMeter({**engine.processes(), "client": [self.client_pid]})
        runs: list[Run] = []
        while len(runs) < schedule.max_batches and (not runs or sum(r.wall_s for r in runs) < schedule.min_cell_s):
            runs.append(self._batch(engine, concurrency))
        use = meter.read()
        tokens = sum(run.output_tokens for run in runs)
        return Cell(
            engine=engine.name,
            concurrency=concurrency,
            round=number,
            tokens_per_s=round(statistics.median(run.tokens_per_s for run in runs), 2),
            tpot_ms=round(1e3 * statistics.median(run.tpot_s for run in runs), 3),
            ttft_ms=round(1e3 * statistics.median(run.ttft_s for run in runs), 2),
            batches=len(runs),
            cpu_ms_per_token={name: round(1e3 * used / tokens, 4) for name, used in use.own_s.items()},
            others_cores_before=round(before, 3),
            others_cores=round(use.others_cores, 3),
            disturbed=use.others_cores > 2 * self.patience.quiet_cores,
        )

    def _look_inside(self, engine: JanusEngine) -> None:
        """Breakdowns come from batches of their own: reading the counters costs the instances a little."""
        found = self.breakdowns.setdefault(engine.name, {})
        for concurrency in self.schedule.concurrencies:
            like = self._batch(engine, concurrency)
            runs = [self._watched_batch(engine, concurrency, like) for _ in range(min(3, self.schedule.rounds))]
            middle = sorted(runs, key=lambda run: run.tpot_s)[len(runs) // 2]
            found[str(concurrency)] = step_breakdown(middle)

    def _batch(self, engine: Engine, concurrency: int) -> Run:
        return engine.run(self._prompts(concurrency), self.workload.output_tokens)

    def _watched_batch(self, engine: JanusEngine, concurrency: int, like: Run) -> Run:
        return engine.run_watched(self._prompts(concurrency), self.workload.output_tokens, like=like)

    def _prompts(self, concurrency: int) -> list[list[int]]:
        self._seed += 1
        return self.workload.prompts(concurrency, self._seed)

    def _tell(self, line: str) -> None:
        print(f"[{self.label}] {line}", file=sys.stderr, flush=True)
