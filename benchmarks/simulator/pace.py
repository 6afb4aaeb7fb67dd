"""How fast the machine is at the moment.

A virtual machine is not always as fast as it was a minute ago: neighbours on the same processor read the same memory,
and no counter of this machine shows them. Steps read weights, so how fast memory is read says how fast steps are.
"""

from __future__ import annotations

import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

#: Of each core: more than a cache has.
_BYTES = 128 << 20
_PASSES = 25
#: Runs count as of the same pace within this share.
ALIKE = 0.1


def memory_gb_s(cores: int) -> float:
    """Return the gigabytes per second at which ``cores`` threads read memory: the median of some passes, 0.2 s."""
    blocks = [np.ones(_BYTES // 8) for _ in range(cores)]
    rates = []
    with ThreadPoolExecutor(cores) as threads:
        for _ in range(_PASSES):
            started = time.perf_counter()
            list(threads.map(np.sum, blocks))
            rates.append(cores * _BYTES / (time.perf_counter() - started) / 1e9)
    return statistics.median(rates)


@dataclass(frozen=True, slots=True)
class Pace:
    """Gigabytes per second before and after something."""

    before: float
    after: float

    @property
    def mean(self) -> float:
        """Meanwhile."""
        return (self.before + self.after) / 2

    def differs(self, reference: float) -> float:
        """Return by what share the one that is further off is off ``reference``."""
        return max(abs(each / reference - 1) for each in (self.before, self.after))
