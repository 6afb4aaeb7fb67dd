"""The result file: what the sweep, the ladder and the ping-pong show in a few keys, and all their figures below."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.exchange.ratios import messages, regrets, speedups
from benchmarks.transport.report import RATIO_FROM

#: In this order, before the details. ``fig12`` is None until the ladder has run, the others until the sweep has.
KEYS = (
    "speedup_two_phase",
    "auto_worst_regret",
    "overhead_vs_ucxx",
    "fig12",
    "messages_per_layer",
    "command",
    "hardware",
    "commit",
    "date",
)


def overheads(figures: Sequence[Mapping[str, Any]], beside: str = "ucxx") -> dict[str, float]:
    """Return what a Janus link takes beside another stack, one way, ``{bytes: ...}``: from 64 KiB on the ratio, below
    it the difference in microseconds. The median over turns that followed each other.

    Args:
        figures: as of ``benchmarks.transport``.
        beside: "ucxx" posts its receives before a message is due, and knows its size; "ucxx-probe" does not, no more
            than a link does.
    """
    turns = {(each["stack"], each["bytes"]): each["turns_us"] for each in figures}
    found = {}
    for (stack, nbytes), ours in turns.items():
        theirs = turns.get((beside, nbytes))
        if stack != "link-ucx" or theirs is None:
            continue
        pairs = list(zip(ours, theirs, strict=True))
        by_ratio = nbytes >= RATIO_FROM
        found[str(nbytes)] = round(statistics.median(a / b if by_ratio else a - b for a, b in pairs), 2)
    return found


def swept(cells: Sequence[dict[str, Any]], transport: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the keys that a sweep and the ping-pong beside it fill."""
    auto = regrets(cells)
    return {
        "speedup_two_phase": speedups(cells),
        "auto_worst_regret": auto["together"]["worst"] if auto else None,
        "overhead_vs_ucxx": overheads(transport),
        "messages_per_layer": messages(cells),
        "auto_regret": auto,
        "overhead_vs_ucxx_probe": overheads(transport, "ucxx-probe"),
    }


def climbed(ladder: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys that the ladder fills: ``fig12`` has the TPOT in ms by rung and number of streams."""
    return {
        "fig12": {
            rung: {streams: turn["tpot_ms"] for streams, turn in by_streams.items()}
            for rung, by_streams in ladder["steps"].items()
        }
    }


def update(path: Path, found: Mapping[str, Any]) -> dict[str, Any]:
    """Put ``found`` into the file beside what others have put there; returns all of it."""
    known = json.loads(path.read_text()) if path.exists() else {}
    merged = {**known, **found}
    result = {**{key: merged.get(key) for key in KEYS}, **{k: v for k, v in merged.items() if k not in KEYS}}
    path.write_text(json.dumps(result, indent=1) + "\n")
    return result
