"""``python -m benchmarks.serving.families``: every model family beside transformers, on a random checkpoint of each.

A cluster of one attention and one expert instance and transformers' generate are up at once, on the same cores, and
take turns, as in ``python -m benchmarks.serving``; docs/performance.md says how a cell is measured.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shlex
import signal
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.serving.campaign import Campaign, Schedule
from benchmarks.serving.engines import JanusEngine, TransformersEngine, client_worker
from benchmarks.serving.family_checkpoints import SETTINGS, family_checkpoint
from benchmarks.serving.machine import Patience, commit, hardware
from benchmarks.serving.report import CLUSTER, summary
from benchmarks.serving.worker import REPOSITORY
from benchmarks.serving.workload import Workload

_RESULT = REPOSITORY / "benchmarks" / "results" / "models.json"


def main() -> int:
    """Command line."""
    given = _arguments()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # engines are stopped on the way out
    cores = len(os.sched_getaffinity(0))
    logs = Path(tempfile.mkdtemp(prefix="janus-bench-models-"))
    patience = Patience(quiet_cores=0.1, budget_s=0.0 if given.quick else given.patience)
    client = client_worker(logs / "client.log")
    summaries: dict[str, dict[str, Any]] = {}
    try:
        for family in given.families:
            checkpoint, folder = family_checkpoint(family), logs / family
            folder.mkdir()
            cluster = ["--attention", "1", "--experts", "1", "--threads", str(given.threads)]
            campaign = Campaign(
                engines=[
                    JanusEngine(
                        CLUSTER, checkpoint, client, folder / "janus.log", dtype=given.dtype, arguments=cluster
                    ),
                    TransformersEngine(
                        checkpoint, folder / "rival.log", dtype=given.dtype, cores=cores, rehearsal=given.quick
                    ),
                ],
                workload=Workload(output_tokens=given.output_tokens, vocab_size=checkpoint.vocab_size),
                schedule=Schedule(
                    concurrencies=tuple(given.concurrency),
                    rounds=1 if given.quick else given.rounds,
                    min_cell_s=0.5 if given.quick else 1.5,
                    max_batches=2 if given.quick else 5,
                    breakdowns=False,
                ),
                patience=patience,
                client_pid=client.pid,
                label=f"{family} {given.dtype}",
            )
            campaign.measure()
            summaries[family] = summary(campaign)
            print(f"{family}: {json.dumps(summaries[family].get('vs_transformers'))} x transformers", file=sys.stderr)
            given.output.write_text(json.dumps(result_of(summaries, given, cores), indent=1) + "\n")
    finally:
        client.close()
    print(f"written: {given.output}; logs: {logs}", file=sys.stderr)
    return 0


def result_of(summaries: dict[str, dict[str, Any]], given: argparse.Namespace, cores: int) -> dict[str, Any]:
    """Return the result file: ratios and TPOT by family and batch, and what they are of."""
    others = [cell["others_cores"] for each in summaries.values() for cell in each["cells"]]
    return {
        "vs_transformers": {family: each.get("vs_transformers", {}) for family, each in summaries.items()},
        "tpot_ms": {family: each["tpot_ms"].get(CLUSTER, {}) for family, each in summaries.items()},
        "output_tokens_per_s": {family: each["output_tokens_per_s"] for family, each in summaries.items()},
        "cluster": CLUSTER,
        "dtype": given.dtype,
        "command": shlex.join(["python", "-m", "benchmarks.serving.families", *sys.argv[1:]]),
        "commit": commit(REPOSITORY),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "hardware": hardware(cores),
        "load": f"Others used {statistics.median(others):.2f} cores in the median (at most {max(others):.2f}).",
        "workload": {"output_tokens": given.output_tokens, "sampling": "greedy, ignore_eos", "rounds": given.rounds},
        "families": summaries,
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving.families", description=__doc__)
    add = parser.add_argument
    add("--quick", action="store_true", help="a rehearsal: 1 round of 16 tokens, no waiting for a quiet machine")
    add("--families", nargs="+", choices=list(SETTINGS), default=list(SETTINGS), metavar="FAMILY")
    add("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    add("--concurrency", nargs="+", type=int, default=[1, 8, 32], metavar="N", help="requests at once")
    add("--rounds", type=int, default=3, help="measurements of each cell, interleaved (default: 3)")
    add("--output-tokens", type=int, default=64, help="per request (default: 64)")
    add("--threads", type=int, default=0, help="threads per attention and expert instance (default: as janus up)")
    add("--patience", type=float, default=60.0, help="seconds to wait for a quiet machine in all (default: 60)")
    add("--output", type=Path, default=_RESULT, help="result file (default: benchmarks/results/models.json)")
    given = parser.parse_args()
    if given.quick:
        given.output_tokens = min(given.output_tokens, 16)
        if given.output == _RESULT:
            given.output = Path(tempfile.gettempdir()) / "models-quick.json"
    return given


if __name__ == "__main__":
    sys.exit(main())
