"""Compare the simulator with the cluster on this machine, and measure how fast it is.

    python -m benchmarks.simulator
    python -m benchmarks.simulator --against benchmarks/results/simulator.json

Writes benchmarks/results/simulator.json. A quick profile of this machine is measured first, with one attention
instance; ``--hardware`` takes another one, which must be of this machine too, or the comparison says nothing about the
simulator. No parameter of the simulator or of the profile is fitted to the points that are compared. "Bare" is a
profile of the same observations that knows nothing of the cores that gateway, clients and other instances take. How
fast memory is read is noted with each, and runs of a point count that the machine was as fast in as for the profile.

``--against`` starts no cluster: what a result file has measured is simulated anew, with the profile that it was made
with, or with ``--hardware``. That is how a change of the model is judged.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.markdown import write_into
from benchmarks.serving.machine import commit, hardware
from benchmarks.simulator import comparing, observed, profiles, real, speed
from benchmarks.simulator.points import POINTS
from benchmarks.simulator.report import text
from benchmarks.written import as_json

from janus.cluster.environment import usable_cores
from janus.errors import JanusError

_REPOSITORY = Path(__file__).parents[2]
_RESULT = _REPOSITORY / "benchmarks" / "results" / "simulator.json"
_DOCUMENT = _REPOSITORY / "docs" / "simulation.md"


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hardware", default="", help="profile of this machine, a name or a file: none is measured")
    parser.add_argument("--only", default="", help="points whose name contains this")
    parser.add_argument("--no-speed", action="store_true", help="leave out how fast it is")
    parser.add_argument("--against", type=Path, help="a result file: its points are simulated anew, without a cluster")
    parser.add_argument("--out", type=Path, help=f"file to write; {_RESULT.name}, or none with --against")
    given = parser.parse_args()
    try:
        return _replay(given) if given.against else _measure(given)
    except JanusError as error:
        _tell(str(error))
        return 1


def _measure(given: argparse.Namespace) -> int:
    found = profiles.given(given.hardware) if given.hardware else asyncio.run(profiles.measured(_tell))
    points = [point for point in POINTS if given.only in point.name]
    with tempfile.TemporaryDirectory(prefix="janus-simulator-") as scratch:
        seen = asyncio.run(real.observe(real.models(Path(scratch)), points, _tell, reference_gb_s=found.memory_gb_s))
    out = given.out or _RESULT
    result = _result(given, seen, found)
    out.write_text(as_json(result), encoding="utf-8")
    if out == _RESULT:
        write_into(_DOCUMENT, text(result), result=_RESULT.name)
    return _done(result, out)


def _replay(given: argparse.Namespace) -> int:
    found = profiles.given(given.hardware) if given.hardware else profiles.kept_in(given.against)
    with tempfile.TemporaryDirectory(prefix="janus-simulator-") as scratch:
        sizes = {name: model.sizes for name, model in real.models(Path(scratch)).items()}
    seen = observed.read(given.against, sizes, only=given.only)
    result = _result(given, seen, found)
    if given.out is not None:
        given.out.write_text(as_json(result), encoding="utf-8")
    return _done(result, given.out)


def _done(result: dict[str, Any], out: Path | None) -> int:
    _tell(
        f"median error {result['median_error']:.1%}, worst {result['worst_error']:.1%}; bare "
        f"{result['bare_median_error']:.1%} and {result['bare_worst_error']:.1%}" + (f"; {out} written" if out else "")
    )
    return 0


def _result(given: argparse.Namespace, seen: list[observed.Observed], found: profiles.Profiles) -> dict[str, Any]:
    rows = comparing.rows(seen, found, _tell)
    return comparing.summary(rows, _tell) | {
        "command": " ".join(["python -m benchmarks.simulator", *sys.argv[1:]]),
        "profile": {"name": found.profile.name, **found.profile.measured},
        "hardware": hardware(usable_cores()),
        "commit": commit(_REPOSITORY),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "points": rows,
        "speed": [] if given.no_speed else [_speed(*size) for size in speed.SIZES],
        "a_max": observed.kept_tables(seen),
        **found.kept(),
    }


def _speed(attention: int, experts: int, rate: float) -> dict[str, Any]:
    row = speed.measure(attention, experts, rate)
    _tell(f"{row['instances']} instances: {row['virtual_s']} s in {row['real_s']} s ({row['virtual_per_real']}x)")
    return row


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
