"""``python -m benchmarks.gpu``: check and time what runs on a GPU; writes benchmarks/results/gpu.json.

Needs a CUDA device, a CUDA build of torch, and CuPy. Without them it says so, measures nothing and writes nothing.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from benchmarks.gpu.aebs import measure_aebs
from benchmarks.gpu.exchange import SIZES, measure_exchange
from benchmarks.serving.machine import commit, hardware
from benchmarks.serving.worker import REPOSITORY

_RESULT = REPOSITORY / "benchmarks" / "results" / "gpu.json"


def main() -> int:
    """Command line; returns 2 where there is nothing to measure on."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16, 64, 256, 1024, 4096], metavar="TOKENS")
    parser.add_argument("--instances", nargs="+", type=int, default=[8, 16, 64], metavar="N")
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES, metavar="BYTES", help="of the exchange")
    parser.add_argument("--rounds", type=int, default=30, metavar="N", help="turns of the exchange, for each size")
    parser.add_argument("--only", choices=("aebs", "exchange"), help="measure one of the two")
    parser.add_argument("--output", type=Path, default=_RESULT)
    given = parser.parse_args()
    if missing := _missing():
        print(f"nothing measured: {missing}", file=sys.stderr)
        return 2
    device = torch.device("cuda", torch.cuda.current_device())
    # From one device to another, which is what their link can do; on a single device, what its memory can.
    owner = min(1, torch.cuda.device_count() - 1)
    runs: dict[str, Iterator[dict[str, Any]]] = {
        "aebs_us": measure_aebs(batches=given.batches, instances=given.instances, device=device),
        "exchange": measure_exchange(sizes=given.sizes, rounds=given.rounds, owner=owner, reader=0),
    }
    results: dict[str, list[dict[str, Any]]] = {}
    for name, entries in runs.items():
        if given.only and not name.startswith(given.only):
            continue
        for entry in entries:
            results.setdefault(name, []).append(entry)
            print(entry, file=sys.stderr)
            _write(given, device, results)  # what is measured is kept, whatever comes
    return 0


def _missing() -> str:
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    if importlib.util.find_spec("cupy") is None:
        return "CuPy is not installed (pip install '.[cu12]' or '.[cu13]')"
    return ""


def _write(given: argparse.Namespace, device: torch.device, results: dict[str, list[dict[str, Any]]]) -> None:
    properties = torch.cuda.get_device_properties(device)
    result = {
        **results,
        "command": shlex.join(["python", "-m", "benchmarks.gpu", *sys.argv[1:]]),
        "hardware": hardware(os.cpu_count() or 1)
        | {"gpu": properties.name, "gpu_memory_gib": round(properties.total_memory / 2**30, 1)},
        "versions": {"torch": torch.__version__, "cuda": torch.version.cuda},
        "commit": commit(REPOSITORY),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
    given.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
