"""Chooses the way of each dispatch of a node: a contest per size, which know of each other. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping

from janus.core.exchange_routes import Mode
from janus.core.exchange_trials import Contest

#: Sizes this many classes apart are alike enough for one to begin with what the other has learned.
_NEIGHBOURS = 2


class ModeChooser:
    """Deterministic in what it is told."""

    def __init__(self) -> None:
        self._contests: dict[int, Contest] = {}

    @staticmethod
    def size(batch_bytes: int) -> int:
        """Return the size class of a batch: its bytes in powers of four. The same in all layers of a step."""
        return max(batch_bytes, 1).bit_length() // 2

    def choose(
        self, size: int, ways: Collection[Mode], predicted_s: Callable[[], Mapping[Mode, float]]
    ) -> tuple[Mode, int]:
        """Return the way for a dispatch of class ``size``, and its window for ``took``.

        Args:
            size: see ``size``.
            ways: those that are possible and differ.
            predicted_s: gives what the cost model says that each takes.
        """
        contest = self._contests.get(size)
        if contest is None:
            contest = self._contests[size] = Contest()
        return contest.choose(ways, lambda: self._prior(size, predicted_s()))

    def took(self, size: int, window: int, seconds: float) -> None:
        """Learn that the dispatch that was chosen in ``window`` was followed by the next layer's after ``seconds``."""
        contest = self._contests.get(size)
        if contest is not None and window:
            contest.took(window, seconds)

    def settled(self, size: int, ways: Collection[Mode]) -> bool:
        """Return whether every one of ``ways`` was tried for ``size``."""
        contest = self._contests.get(size)
        return contest is not None and contest.settled(ways)

    @property
    def trials(self) -> int:
        """Trials that have ended."""
        return sum(contest.trials for contest in self._contests.values())

    @property
    def changes(self) -> int:
        """Trials after which another way was the usual one."""
        return sum(contest.changes for contest in self._contests.values())

    def _prior(self, size: int, predicted_s: Mapping[Mode, float]) -> dict[Mode, float]:
        """Return the logarithm of what each way is thought to take: as the nearest size has it, else as predicted."""
        prior = {way: math.log(max(s, 1e-9)) for way, s in predicted_s.items()}
        near = [known for known in self._contests if 0 < abs(known - size) <= _NEIGHBOURS]
        near = [known for known in near if len(self._contests[known].levels) > 1]
        if not near:
            return prior
        neighbour = self._contests[min(near, key=lambda known: abs(known - size))]
        if neighbour.usual not in prior:
            return prior
        # Where the neighbour has no measurement, the model says how a way compares with the neighbour's usual one.
        anchor = prior[neighbour.usual] - neighbour.levels[neighbour.usual]
        return {way: anchor + neighbour.levels[way] if way in neighbour.levels else s for way, s in prior.items()}
