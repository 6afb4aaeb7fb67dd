"""What a sweep shows: how much faster two phases are, how near auto is to the best way, what crosses between nodes."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

FORCED = ("direct", "aggregated", "two-phase")
#: A cell in which auto is this much slower than the best way, or less, is as it should be.
REGRET = 0.1


def ratios(cell: dict[str, Any], key: str = "us") -> dict[str, float]:
    """Return direct over two phases, and auto over the best of the forced ways.

    The ways take turns, so that those of a round have the same neighbours: ratios are taken round by round, and the
    median of them counts. The best way of a round is the one that was best in the other rounds, so that a way which was
    lucky in one is not taken for faster than it is.

    Args:
        cell: a record of the sweep.
        key: "us" for all instances together, "us_apart" for each by itself.
    """
    each = {way: cell["ways"][f"attention/{way}"][f"{key}_each"] for way in (*FORCED, "auto")}
    rounds = range(len(each["auto"]))
    over_best = []
    for this in rounds:
        others = [number for number in rounds if number != this] or [this]
        best = min(FORCED, key=lambda way: statistics.median(each[way][number] for number in others))
        over_best.append(each["auto"][this] / each[best][this])
    return {
        "two_phase_speedup": round(_paired(each["direct"], each["two-phase"]), 3),
        "auto_over_best": round(statistics.median(over_best), 3),
    }


def _paired(times: Sequence[float], others: Sequence[float]) -> float:
    return statistics.median(mine / theirs for mine, theirs in zip(times, others, strict=True))


def has_apart(cell: dict[str, Any]) -> bool:
    """Return whether instances were also timed each by itself."""
    return "us_apart_each" in cell["ways"]["attention/auto"]


def setting(cell: dict[str, Any]) -> str:
    """Return the name of a cell."""
    return f"{cell['latency_us']:g} us, {cell['rate_gbit']:g} Gbit/s, {_size(cell)}"


def _size(cell: dict[str, Any]) -> str:
    return f"{cell['attention']}x{cell['experts']}, H {cell['hidden']}, {cell['tokens']} tokens"


def speedups(cells: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return how much faster than direct two phases are, all instances together: ``{setting: ratio}``."""
    return {setting(cell): ratios(cell)["two_phase_speedup"] for cell in cells}


def regrets(cells: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return how much slower than the best way auto is over all cells, together and apart, as fractions."""
    found: dict[str, Any] = {}
    for name, key in (("together", "us"), ("apart", "us_apart")):
        each = {setting(c): ratios(c, key)["auto_over_best"] - 1 for c in cells if key == "us" or has_apart(c)}
        if each:
            worst = max(each, key=lambda cell: each[cell])
            found[name] = {
                "worst": round(each[worst], 3),
                "worst_in": worst,
                "median": round(statistics.median(each.values()), 3),
                "cells": len(each),
                "cells_within_10_percent": sum(regret <= REGRET for regret in each.values()),
            }
    return found


def messages(cells: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return frames from attention nodes to expert nodes in a layer, by size and way; as many come back."""
    found: dict[str, dict[str, float]] = {}
    for cell in cells:
        found.setdefault(
            _size(cell), {way: cell["ways"][f"attention/{way}"]["frames_per_layer"] for way in FORCED}
        )  # the network changes nothing about it
    return found
