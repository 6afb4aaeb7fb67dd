"""Compare the simulator with the cluster on this machine, and measure how fast it is.

    python -m benchmarks.simulator

Writes benchmarks/results/simulator.json. A quick profile of this machine is measured first, with one attention
instance; ``--hardware`` takes another one, which must be of this machine too, or the comparison says nothing about the
simulator.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.markdown import write_into
from benchmarks.serving.machine import commit, hardware
from benchmarks.simulator import real, speed
from benchmarks.simulator.points import POINTS
from benchmarks.simulator.report import text
from benchmarks.simulator.virtual import simulated
from benchmarks.written import as_json

from janus.cluster.environment import usable_cores
from janus.core.planning.hardware import HardwareProfile
from janus.profiles import load_profile
from janus.profiling import campaign
from janus.profiling.points import QUICK

_REPOSITORY = Path(__file__).parents[2]
_RESULT = _REPOSITORY / "benchmarks" / "results" / "simulator.json"
_DOCUMENT = _REPOSITORY / "docs" / "simulation.md"
#: Cores that others keep busy beyond which a comparison says little: the profile was measured on a quiet machine.
_QUIET_CORES = 0.3


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hardware", default="", help="profile of this machine, a name or a file: none is measured")
    parser.add_argument("--only", default="", help="points whose name contains this")
    parser.add_argument("--no-speed", action="store_true", help="leave out how fast it is")
    parser.add_argument("--out", type=Path, default=_RESULT)
    given = parser.parse_args()
    profile = load_profile(given.hardware) if given.hardware else asyncio.run(_measured())
    points = [point for point in POINTS if given.only in point.name]
    with tempfile.TemporaryDirectory(prefix="janus-simulator-") as scratch:
        observed = asyncio.run(real.observe(real.models(Path(scratch)), points, _tell))
    rows = [_row(each, seen, profile) for each in observed for seen in each.seen]
    result = _summary(rows) | {
        "command": " ".join(["python -m benchmarks.simulator", *sys.argv[1:]]),
        "profile": {"name": profile.name, **profile.measured},
        "hardware": hardware(usable_cores()),
        "commit": commit(_REPOSITORY),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "points": rows,
        "speed": [] if given.no_speed else [_speed(*size) for size in speed.SIZES],
    }
    given.out.write_text(as_json(result), encoding="utf-8")
    if given.out == _RESULT:
        write_into(_DOCUMENT, text(result), result=_RESULT.name)
    _tell(f"median error {result['median_error']:.1%}, worst {result['worst_error']:.1%}; {given.out} written")


async def _measured() -> HardwareProfile:
    """A profile of this machine, from a minute or two of its clusters."""
    result = await campaign.run(campaign.Settings(effort=QUICK), _tell)
    _tell(
        f"profile: step times within {result.fit.median_error:.1%} in the median, {result.fit.worst_error:.1%} at worst"
    )
    return result.fit.profile


def _row(observed: real.Observed, seen: real.Seen, profile: HardwareProfile) -> dict[str, Any]:
    report = simulated(observed, seen, profile)
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
        "others_cores": seen.others_cores,
        "runs_tpot_ms": [round(1e3 * each, 3) for each in seen.runs_tpot_s],
    }
    _tell(
        f"{row['point']}: TPOT {row['tpot_ms']} ms, simulated {row['simulated_tpot_ms']} ms ({row['tpot_error']:+.1%})"
    )
    return row


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Errors over TPOT and throughput of all points: what is simulated over what was measured, less one."""
    tpot, tokens = ([abs(row[key]) for row in rows] for key in ("tpot_error", "tokens_error"))
    loud = [row["point"] for row in rows if row["others_cores"] > _QUIET_CORES]
    if loud:
        _tell(f"others used the cores during {len(loud)} of {len(rows)} points: run it again on a quiet machine")
    return {
        "disturbed_points": len(loud),
        "median_error": round(statistics.median([*tpot, *tokens]), 4),
        "worst_error": round(max([*tpot, *tokens]), 4),
        "median_tpot_error": round(statistics.median(tpot), 4),
        "median_tokens_error": round(statistics.median(tokens), 4),
    }


def _speed(attention: int, experts: int, rate: float) -> dict[str, Any]:
    row = speed.measure(attention, experts, rate)
    _tell(f"{row['instances']} instances: {row['virtual_s']} s in {row['real_s']} s ({row['virtual_per_real']}x)")
    return row


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
