"""The garbage collector, out of the token path's way."""

from __future__ import annotations

import gc

#: Allocations between two young collections, and how many of those between older ones. The defaults (700, 10, 10) start
#: a collection in nearly every decode step.
_THRESHOLDS = (20_000, 20, 50)


def settle() -> None:
    """Take what exists now (torch, the model, the tables) out of the collector's sight, and have it run seldom.

    Call when a service has loaded what it serves. Every step makes many short-lived containers, so the collector runs
    often, and its full passes walk the hundreds of thousands of objects that torch brings: a visible part of every
    decode step. Cycles that services make from now on are still found.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
