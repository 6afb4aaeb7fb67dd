"""``python -m benchmarks.serving.schedulers``: what each scheduler makes of the same load on a real cluster.

One attention instance and two expert instances with one thread each, so that the layer takes as long as the instance
that reads the most experts; slots for half as many replicas again as there are experts. Clusters with every scheduler
are up at once and take turns, round by round. Writes benchmarks/results/schedulers.json: per scheduler and number of
requests the mean a_max, the time from a dispatch to its last answer, the slowest instance's computation, and TPOT.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shlex
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.markdown import table, write_into
from benchmarks.serving.checkpoints import CHECKPOINTS
from benchmarks.serving.engines import JanusEngine, client_worker
from benchmarks.serving.machine import commit, hardware
from benchmarks.serving.worker import REPOSITORY
from benchmarks.serving.workload import Run, Workload

_RESULT = REPOSITORY / "benchmarks" / "results" / "schedulers.json"
_DOCUMENT = REPOSITORY / "docs" / "scheduling.md"
_SCHEDULERS = ("aebs", "aebs-greedy", "random", "static", "token-balanced")
_EXPERT_INSTANCES = 2


def main() -> int:
    """Command line."""
    given = _arguments()
    models = {name: _measure(given, name) for name in given.checkpoints}
    result = {
        "models": models,
        "command": shlex.join(["python", "-m", "benchmarks.serving.schedulers", *sys.argv[1:]]),
        "hardware": hardware(os.cpu_count() or 1),
        "commit": commit(REPOSITORY),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
    given.output.write_text(json.dumps(result, indent=1) + "\n")
    if given.document:
        write_into(given.document, tables(result), result="schedulers.json")
    print(f"written: {given.output}", file=sys.stderr)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving.schedulers", description=__doc__)
    add = parser.add_argument
    add("--checkpoints", nargs="+", choices=list(CHECKPOINTS), default=list(CHECKPOINTS), metavar="NAME")
    add("--concurrency", nargs="+", type=int, default=[2, 8, 32], metavar="N", help="requests at once")
    add("--rounds", type=int, default=5, help="measurements of each cell, interleaved (default: 5)")
    add("--output-tokens", type=int, default=64, help="per request (default: 64)")
    add("--output", type=Path, default=_RESULT, help="result file")
    add("--document", type=Path, default=_DOCUMENT, help="document whose table is replaced")
    return parser.parse_args()


def _measure(given: argparse.Namespace, name: str) -> dict[str, Any]:
    checkpoint = CHECKPOINTS[name]()
    experts = json.loads((checkpoint.path / "config.json").read_text())["num_experts"]
    slots = -(-experts * 3 // 2 // _EXPERT_INSTANCES)
    workload = Workload(output_tokens=given.output_tokens, vocab_size=checkpoint.vocab_size)
    logs = Path(tempfile.mkdtemp(prefix="janus-bench-"))
    client = client_worker(logs / "client.log")
    engines: list[JanusEngine] = []
    cells: dict[str, dict[int, list[dict[str, float]]]] = {each: {} for each in _SCHEDULERS}
    try:
        for scheduler in _SCHEDULERS:
            arguments = ["--experts", str(_EXPERT_INSTANCES), "--threads", "1", "--scheduler", scheduler]
            arguments += ["--slots-per-instance", str(slots)]
            log = logs / f"{scheduler}.log"
            engine = JanusEngine(scheduler, checkpoint, client, log, dtype="bfloat16", arguments=arguments)
            engine.start()
            engines.append(engine)
        seed = 0
        for number in range(given.rounds):
            for concurrency in given.concurrency:
                shift = number % len(engines)
                seed += 1  # the same prompts for all of them, so that they activate the same experts
                prompts = workload.prompts(concurrency, seed)
                for engine in engines[shift:] + engines[:shift]:
                    like = engine.run(prompts, given.output_tokens)
                    run = engine.run_watched(prompts, given.output_tokens, like=like)
                    cells[engine.name].setdefault(concurrency, []).append(_cell(run))
                    print(f"[{name}] round {number + 1} {engine.name} N={concurrency} {_cell(run)}", file=sys.stderr)
    finally:
        for engine in engines:
            engine.stop()
        client.close()
    return {
        "experts": experts,
        "slots_per_instance": slots,
        "expert_instances": _EXPERT_INSTANCES,
        "rounds": given.rounds,
        "schedulers": {
            scheduler: {
                str(concurrency): {key: round(statistics.median(cell[key] for cell in runs), 3) for key in runs[0]}
                for concurrency, runs in by_concurrency.items()
            }
            for scheduler, by_concurrency in cells.items()
        },
    }


def _cell(run: Run) -> dict[str, float]:
    """What one batch shows, per dispatch of an MoE layer."""
    assert run.before is not None and run.after is not None
    before, after = (counters["attention-0"]["exchange"] for counters in (run.before, run.after))
    spent = {key: after[key] - before[key] for key in after}
    dispatches = max(1, spent["dispatches"])
    return {
        "a_max": round(spent["a_max"] / dispatches, 3),
        "activated": round(spent["activated"] / dispatches, 3),
        "moe_layer_us": round((spent["pack_ns"] + spent["wait_ns"] + spent["combine_ns"]) / dispatches / 1e3, 1),
        "slowest_instance_us": round(spent["expert_ns"] / dispatches / 1e3, 1),
        "schedule_us": round(spent["schedule_ns"] / dispatches / 1e3, 2),
        "tpot_ms": round(1e3 * run.tpot_s, 3),
        "tokens_per_s": round(run.tokens_per_s, 1),
    }


def tables(result: dict[str, Any]) -> str:
    """Return the result in Markdown."""
    parts = [
        f"Measured {result['date']} at commit `{result['commit']}` with `{result['command']}` on "
        f"{result['hardware']['cpu']}, {result['hardware']['cores']} cores; medians over the rounds."
    ]
    for name, model in result["models"].items():
        concurrencies = list(next(iter(model["schedulers"].values())))
        shape = f"{name}, {model['experts']} experts, {model['expert_instances']} x {model['slots_per_instance']} slots"
        columns = ("a_max", "slowest instance, µs", "MoE layer, µs")
        rows = [[shape, *(f"{column}, N={n}" for n in concurrencies for column in columns)]]
        for scheduler, cells in model["schedulers"].items():
            keys = (("a_max", ".2f"), ("slowest_instance_us", ".0f"), ("moe_layer_us", ".0f"))
            rows.append([scheduler, *(format(cells[n][key], form) for n in concurrencies for key, form in keys)])
        parts.append(table(rows))
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    sys.exit(main())
