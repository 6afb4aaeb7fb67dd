"""Samples what the router chooses, on the step loop: some tokens, each through all MoE layers.

Every n-th token that is routed is sampled, prompt or decode, with n such that about ``per_report`` of them come
together between two reports. The gap to the next one is drawn from 1..2n-1: with a fixed one, a batch whose size
divides it would show the same sequence again and again. A step without a sampled token costs a subtraction and a
comparison.
"""

from __future__ import annotations

import random

import numpy as np
import numpy.typing as npt
import torch

from janus.messages.control import RoutingSample

#: Seconds between two reports.
REPORT_EVERY_S = 1.0
#: Rows that are sampled of one step, at most: a prompt is one text.
MAX_ROWS = 8


class SampledRows:
    """The sampled rows of one step that is being computed. Steps in flight at the same time have one each."""

    __slots__ = ("_ids", "_rows", "seen")

    def __init__(self, rows: list[int], seen: int) -> None:
        """``rows``: indices of the step's tokens. ``seen``: tokens since the sampled step before, this one included."""
        self.seen = seen
        self._rows = torch.tensor(rows)
        self._ids: list[torch.Tensor] = []

    def of(self, values_TX: torch.Tensor) -> torch.Tensor:
        """Return a copy of the sampled rows of ``values_TX``, [S, X]."""
        if self._rows.device != values_TX.device:
            self._rows = self._rows.to(values_TX.device)
        return values_TX.index_select(0, self._rows)

    def add(self, ids: torch.Tensor) -> None:
        """Note what was routed in the next MoE layer: expert ids int32 [T, K] of all tokens, or [S, K] of the sampled.

        The tensor is kept until the step has ended, and must not change: rows are picked out of all layers at once, in
        a tenth of the time that it would take layer by layer.
        """
        self._ids.append(ids)

    def collect(self) -> npt.NDArray[np.uint16]:
        """Return uint16 [L, S, K]; on a device, this is where it is waited for."""
        ids = torch.stack(self._ids)
        if ids.shape[1] != len(self._rows):
            ids = ids[:, self._rows.to(ids.device)]
        found: npt.NDArray[np.uint16] = ids.cpu().numpy().astype("<u2")
        return found


class RoutingSampler:
    """Which tokens of which steps are sampled, and what was until the next report. Bounded; for one thread."""

    def __init__(self, per_report: int, *, max_rows: int = MAX_ROWS, seed: int | None = None) -> None:
        """``per_report``: tokens that should come together between two calls of ``take``; 0 samples none."""
        self._per_report = per_report
        self._max_rows = max_rows
        self._random = random.Random(seed)
        self._mean_gap = 1
        #: Tokens until the next one that is sampled, and what that was after the last sampled step.
        self._until = self._start = 1 if per_report else 1 << 62
        #: Tokens seen since the last report, up to the last sampled step that has ended.
        self._seen = 0
        self._kept: list[npt.NDArray[np.uint16]] = []
        self._tokens = 0

    @property
    def pending(self) -> bool:
        """Whether there is something to report."""
        return self._tokens > 0

    def begin(self, tokens: int) -> SampledRows | None:
        """Return the rows to sample of a step with ``tokens`` tokens, ``None`` for none."""
        self._until -= tokens
        if self._until > 0:
            return None
        return self._pick(tokens)

    def keep(self, sampled: SampledRows) -> None:
        """Take in the rows of a step that was computed to its end; those of others are just forgotten."""
        ids = sampled.collect()
        self._seen += sampled.seen
        # Twice what is wanted: load may have grown by as much since the gap was chosen.
        room = 2 * self._per_report - self._tokens
        if room > 0:
            self._kept.append(ids[:, :room])
            self._tokens += min(room, ids.shape[1])

    def take(self) -> RoutingSample | None:
        """Return what was sampled since the last call, and choose the gap by what was seen; ``None`` for nothing."""
        if not self._tokens:
            return None
        self._mean_gap = max(1, round(self._seen / self._per_report))
        ids = np.concatenate(self._kept, axis=1)
        layers, tokens, top_k = ids.shape
        message = RoutingSample(layers=layers, tokens=tokens, top_k=top_k, expert_ids=ids.tobytes(), seen=self._seen)
        self._kept, self._tokens, self._seen = [], 0, 0
        unreported = self._start - self._until
        self._until = self._gap()
        self._start = self._until + unreported
        return message

    def _pick(self, tokens: int) -> SampledRows | None:
        seen = self._start - self._until
        rows = []
        row = tokens - 1 + self._until  # of the token at which the gap ended
        while row < tokens:
            rows.append(row)
            row += self._gap()
        self._until = self._start = row - tokens + 1
        if self._tokens >= 2 * self._per_report:
            self._seen += seen
            return None
        if len(rows) > self._max_rows:
            rows = [rows[i * len(rows) // self._max_rows] for i in range(self._max_rows)]
        return SampledRows(rows, seen)

    def _gap(self) -> int:
        return self._random.randint(1, 2 * self._mean_gap - 1)
