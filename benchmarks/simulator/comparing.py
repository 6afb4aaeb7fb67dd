"""Every point simulated beside what was measured, and how far they are apart."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.simulator.observed import Observed, Seen
from benchmarks.simulator.profiles import Profiles
from benchmarks.simulator.virtual import simulated

#: Cores that others keep busy beyond which a comparison says little: the profile was measured on a quiet machine.
_QUIET_CORES = 0.3


def rows(observed: Sequence[Observed], profiles: Profiles, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """Return a row for each point."""
    return [_row(each, seen, profiles, tell) for each in observed for seen in each.seen]


def _row(observed: Observed, seen: Seen, profiles: Profiles, tell: Callable[[str], None]) -> dict[str, Any]:
    report, bare = (simulated(observed, seen, profile) for profile in (profiles.profile, profiles.bare))
    tpot, rate = report.tpot_s.mean, report.output_tokens / report.ended_s
    row = {
        "point": seen.point.name,
        "tpot_ms": round(1e3 * seen.tpot_s, 3),
        "simulated_tpot_ms": round(1e3 * tpot, 3),
        "tpot_error": round(tpot / seen.tpot_s - 1, 4),
        "tokens_per_s": round(seen.tokens_per_s, 1),
        "simulated_tokens_per_s": round(rate, 1),
        "tokens_error": round(rate / seen.tokens_per_s - 1, 4),
        "ttft_ms": round(1e3 * seen.ttft_s, 2),
        "simulated_ttft_ms": round(1e3 * report.ttft_s.mean, 2),
        "bare_tpot_error": round(bare.tpot_s.mean / seen.tpot_s - 1, 4),
        "bare_tokens_error": round(bare.output_tokens / bare.ended_s / seen.tokens_per_s - 1, 4),
        "others_cores": seen.others_cores,
        "memory_gb_s": round(seen.memory_gb_s, 2),
        "runs_tpot_ms": [round(1e3 * each, 3) for each in seen.runs_tpot_s],
    }
    tell(
        f"{row['point']}: TPOT {row['tpot_ms']} ms, simulated {row['simulated_tpot_ms']} ms ({row['tpot_error']:+.1%}; "
        f"bare {row['bare_tpot_error']:+.1%})"
    )
    return row


def summary(rows: Sequence[dict[str, Any]], tell: Callable[[str], None]) -> dict[str, Any]:
    """Errors over TPOT and throughput of all points: what is simulated over what was measured, less one."""
    tpot, tokens = ([abs(row[key]) for row in rows] for key in ("tpot_error", "tokens_error"))
    bare = [abs(row[key]) for row in rows for key in ("bare_tpot_error", "bare_tokens_error")]
    loud = [row["point"] for row in rows if row["others_cores"] > _QUIET_CORES]
    if loud:
        tell(f"others used the cores during {len(loud)} of {len(rows)} points: run it again on a quiet machine")
    return {
        "disturbed_points": len(loud),
        "median_error": round(statistics.median([*tpot, *tokens]), 4),
        "worst_error": round(max([*tpot, *tokens]), 4),
        "median_tpot_error": round(statistics.median(tpot), 4),
        "median_tokens_error": round(statistics.median(tokens), 4),
        "bare_median_error": round(statistics.median(bare), 4),
        "bare_worst_error": round(max(bare), 4),
    }
