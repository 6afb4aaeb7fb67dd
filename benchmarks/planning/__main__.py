"""``python -m benchmarks.planning``: how long a search and its tables of a_max take.

Writes the result file and prints the table that docs/planning.md has.
"""

from __future__ import annotations

import argparse
import datetime
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.markdown import table, write_into
from benchmarks.serving.machine import commit, hardware
from benchmarks.written import as_json

from janus.core.planning.activation import AMaxTable, estimate, instance_grid
from janus.core.planning.catalog import named
from janus.core.planning.plan import Problem
from janus.core.planning.routing import synthetic_routing
from janus.core.planning.search import search
from janus.core.planning.steady import Traffic
from janus.model.kernels.scheduling import fastest_scheduler
from janus.profiles import load_profile

_REPOSITORY = Path(__file__).parents[2]
_RESULT = _REPOSITORY / "benchmarks" / "results" / "planning.json"
_DOCUMENT = _REPOSITORY / "docs" / "planning.md"
_MODEL, _SLOTS = "DeepSeek-V2", 27
_CHAT = Traffic(requests_s=6, prompt_tokens=160, output_tokens=256)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.planning", description=__doc__)
    parser.add_argument("--output", type=Path, default=_RESULT, help="result file")
    given = parser.parse_args(arguments)
    result = {"searches": _searches(), "tables": _tables()} | {
        "command": shlex.join(
            ["python", "-m", "benchmarks.planning", *(sys.argv[1:] if arguments is None else arguments)]
        ),
        "commit": commit(_REPOSITORY),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "hardware": hardware(os.cpu_count() or 1),
    }
    given.output.write_text(as_json(result))
    text = report(result)
    print(text)
    if given.output == _RESULT:
        write_into(_DOCUMENT, text, result="planning.json")
    return 0


def _searches() -> list[dict[str, Any]]:
    """The least of several runs of 64 x 64 numbers of instances, with tables that are there."""
    model = named(_MODEL)

    @cache
    def a_max(slots: int) -> AMaxTable:
        return _table("static", slots, draws=4, layers=1)

    def problem(profile: str = "h100-80gb", **more: Any) -> Problem:
        hardware_profile = load_profile(profile)
        kinds = tuple(hardware_profile.devices)
        given = {"traffic": _CHAT, "percentile": 99.0, "attention_devices": kinds, "expert_devices": kinds}
        return Problem(model=model, profile=hardware_profile, slo_tpot_s=0.15, a_max=a_max, **(given | more))

    cases = {
        "a batch of 256 streams": problem(traffic=None, percentile=0.0, batch=256, context=288),
        "a rate, P99 TPOT": problem(),
        "a rate, 1 or 2 micro-batches": problem(micro_batches=(1, 2)),
        "a rate, two kinds of devices for each role, 1 or 2 micro-batches": problem("h100-h20", micro_batches=(1, 2)),
    }
    found = []
    for name, each in cases.items():
        plan = search(each)  # makes the tables
        seconds = _least(lambda each=each: search(each), times=7)
        chosen = plan.chosen.name if plan.chosen else ""
        found.append({"what": name, "points": plan.looked_at, "ms": round(1e3 * seconds, 1), "chosen": chosen})
    return found


def _tables() -> list[dict[str, Any]]:
    found = []
    for policy in ("static", "eplb", "activation-aware"):
        estimated = _table(policy, _SLOTS, draws=16, layers=1)
        seconds = _least(lambda policy=policy: _table(policy, _SLOTS, draws=16, layers=1), times=2)
        found.append(
            {
                "placement": policy,
                "instances": len(estimated.instances),
                "batches": len(estimated.batches),
                "seconds": round(seconds, 2),
                "most_standard_error": round(float(estimated.error.max()), 3),
            }
        )
    return found


def _table(policy: str, slots: int, *, draws: int, layers: int) -> AMaxTable:
    model = named(_MODEL)
    return estimate(
        synthetic_routing(model.experts, model.top_k, 8192, layers=layers, popularity=0.6),
        num_experts=model.experts,
        slots=slots,
        instances=instance_grid(-(-model.experts // slots), 64),
        policy=policy,
        scheduler=fastest_scheduler("aebs"),
        draws=draws,
        layers=layers,
    )


def _least(run: Callable[[], Any], *, times: int) -> float:
    took = []
    for _ in range(times):
        begun = time.process_time()  # one thread; others may want the cores
        run()
        took.append(time.process_time() - begun)
    return min(took)


def report(result: dict[str, Any]) -> str:
    """Return the tables of docs/planning.md."""
    searches = [["search over (n_a, n_e) up to 64 x 64", "points", "CPU ms"]]
    searches += [[each["what"], str(each["points"]), f"{each['ms']:g}"] for each in result["searches"]]
    tables = [["a_max table, placed by", "instances x batches", "CPU s", "standard error at most"]]
    tables += [
        [
            each["placement"],
            f"{each['instances']} x {each['batches']}",
            f"{each['seconds']:g}",
            f"{each['most_standard_error']:.2f}",
        ]
        for each in result["tables"]
    ]
    where = f"Commit `{result['commit']}`, {result['date']}, {result['hardware']['cpu']}. `{result['command']}`."
    about = f"{_MODEL}, {_SLOTS} slots, synthetic routing; 16 draws of one layer by the compiled scheduler."
    return f"{where} {about}\n\n{table(searches)}\n\n{table(tables)}\n"


if __name__ == "__main__":
    sys.exit(main())
