"""``python -m benchmarks.serving``: measure, write the result file, print the tables, refresh the documentation."""

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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.markdown import write_into
from benchmarks.serving.campaign import Campaign, Schedule
from benchmarks.serving.checkpoints import CHECKPOINTS, BenchCheckpoint
from benchmarks.serving.engines import (
    Engine,
    JanusEngine,
    LlamaEngine,
    TransformersEngine,
    VllmEngine,
    client_worker,
)
from benchmarks.serving.machine import Patience, commit, hardware
from benchmarks.serving.report import CLUSTER, summary, tables
from benchmarks.serving.worker import REPOSITORY, Worker
from benchmarks.serving.workload import Workload

_RESULT = REPOSITORY / "benchmarks" / "results" / "serving.json"
_DOCUMENT = REPOSITORY / "docs" / "performance.md"
_ENGINES = (CLUSTER, "1A2E", "monolithic", "transformers", "vllm", "llama.cpp")
#: What the headline of the result file is about.
_HEADLINE = ("qwen3moe-tiny", "bfloat16")


def main() -> int:
    """Command line."""
    given = _arguments()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # engines are stopped on the way out
    cores = sorted(os.sched_getaffinity(0))[: given.cores]
    os.sched_setaffinity(0, cores)  # inherited by every process of the run
    models: dict[str, dict[str, Any]] = {}
    logs = Path(tempfile.mkdtemp(prefix="janus-bench-"))
    patience = Patience(quiet_cores=given.quiet_cores, budget_s=given.patience if given.wait else 0.0)
    client = client_worker(logs / "client.log")
    try:
        for name, dtype in ((name, dtype) for name in given.checkpoints for dtype in given.dtypes):
            checkpoint = CHECKPOINTS[name]()
            folder = logs / f"{name}-{dtype}"
            folder.mkdir()
            campaign = Campaign(
                engines=list(_engines(given, checkpoint, dtype=dtype, client=client, logs=folder, cores=len(cores))),
                workload=Workload(output_tokens=given.output_tokens, vocab_size=checkpoint.vocab_size),
                schedule=_schedule(given),
                patience=patience,
                client_pid=client.pid,
                label=f"{name} {dtype}",
            )
            campaign.skipped |= _not_installed(given, checkpoint, dtype)
            campaign.measure()
            models.setdefault(name, {})[dtype] = summary(campaign)
            result = _result(given, models, len(cores))
            _write(given, result)  # what is measured is kept, whatever comes
    finally:
        client.close()
    print(tables(result))
    print(f"written: {given.output}; logs: {logs}", file=sys.stderr)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    add = parser.add_argument
    add("--quick", action="store_true", help="a rehearsal: 1 round of 16 tokens, bfloat16, no waiting, no document")
    add("--checkpoints", nargs="+", choices=list(CHECKPOINTS), default=list(CHECKPOINTS), metavar="NAME")
    add("--dtypes", nargs="+", choices=["bfloat16", "float32"], default=["bfloat16", "float32"], metavar="DTYPE")
    add("--engines", nargs="+", choices=_ENGINES, default=list(_ENGINES), metavar="ENGINE", help=", ".join(_ENGINES))
    add("--concurrency", nargs="+", type=int, default=[1, 8, 32, 64], metavar="N", help="requests at once")
    add("--rounds", type=int, default=3, help="measurements of each cell, interleaved (default: 3)")
    add("--output-tokens", type=int, default=64, help="per request (default: 64)")
    add("--cores", type=int, default=None, help="use the first N cores (default: all)")
    add("--threads", type=int, default=0, help="threads per attention and expert instance (default: as janus up)")
    add("--no-wait", dest="wait", action="store_false", help="do not wait for a quiet machine; others are recorded")
    add("--quiet-cores", type=float, default=0.1, help="cores that others may use (default: 0.1)")
    add("--patience", type=float, default=900.0, help="seconds to wait for a quiet machine in all (default: 900)")
    add("--output", type=Path, default=_RESULT, help="result file (default: benchmarks/results/serving.json)")
    add("--document", type=Path, default=_DOCUMENT, help="document whose table is replaced (default: the project's)")
    rivals = parser.add_argument_group("other engines, measured when they are installed")
    rivals.add_argument("--vllm-python", type=Path, default=_path("JANUS_BENCH_VLLM_PYTHON"), metavar="PATH")
    rivals.add_argument("--llama-server", type=Path, default=_path("JANUS_BENCH_LLAMA_SERVER"), metavar="PATH")
    rivals.add_argument(
        "--llama-gguf",
        type=Path,
        default=_path("JANUS_BENCH_LLAMA_GGUF"),
        metavar="DIRECTORY",
        help="directory with CHECKPOINT-DTYPE.gguf files",
    )
    given = parser.parse_args()
    if given.quick:
        given.rounds, given.dtypes, given.wait, given.document = 1, given.dtypes[:1], False, None
        given.output_tokens = min(given.output_tokens, 16)
        if given.output == _RESULT:
            given.output = Path(tempfile.gettempdir()) / "serving-quick.json"
    return given


def _path(variable: str) -> Path | None:
    value = os.environ.get(variable)
    return Path(value) if value else None


def _schedule(given: argparse.Namespace) -> Schedule:
    return Schedule(
        concurrencies=tuple(given.concurrency),
        rounds=given.rounds,
        min_cell_s=0.5 if given.quick else 2.0,
        max_batches=2 if given.quick else 5,
    )


def _engines(
    given: argparse.Namespace, checkpoint: BenchCheckpoint, *, dtype: str, client: Worker, logs: Path, cores: int
) -> Iterator[Engine]:
    clusters = {CLUSTER: ("--experts", "1"), "1A2E": ("--experts", "2"), "monolithic": ("--monolithic",)}
    for name in given.engines:
        log = logs / f"{name}.log"
        if name in clusters:
            arguments = ["--attention", "1", *clusters[name], "--threads", str(given.threads)]
            yield JanusEngine(name, checkpoint, client, log, dtype=dtype, arguments=arguments)
        elif name == "transformers":
            yield TransformersEngine(checkpoint, log, dtype=dtype, cores=cores, rehearsal=given.quick)
        elif name in _not_installed(given, checkpoint, dtype):
            continue
        elif name == "vllm":
            yield VllmEngine(checkpoint, client, log, python=given.vllm_python, dtype=dtype, cores=cores)
        elif name == "llama.cpp":
            gguf = _gguf(given, checkpoint, dtype)
            yield LlamaEngine(checkpoint, client, log, server=given.llama_server, gguf=gguf, cores=cores)


def _not_installed(given: argparse.Namespace, checkpoint: BenchCheckpoint, dtype: str) -> dict[str, str]:
    """Engine -> what is missing, of those that were asked for."""
    missing = {}
    if given.vllm_python is None:
        missing["vllm"] = "no --vllm-python was given"
    if given.llama_server is None or given.llama_gguf is None:
        missing["llama.cpp"] = "no --llama-server and --llama-gguf were given"
    elif not _gguf(given, checkpoint, dtype).is_file():
        missing["llama.cpp"] = f"there is no {_gguf(given, checkpoint, dtype).name}"
    return {name: reason for name, reason in missing.items() if name in given.engines}


def _gguf(given: argparse.Namespace, checkpoint: BenchCheckpoint, dtype: str) -> Path:
    directory: Path = given.llama_gguf
    return directory / f"{checkpoint.name}-{dtype}.gguf"


def _result(given: argparse.Namespace, models: dict[str, dict[str, Any]], cores: int) -> dict[str, Any]:
    name, dtype = _HEADLINE
    headline = models.get(name, {}).get(dtype, {})
    cells = [cell for dtypes in models.values() for data in dtypes.values() for cell in data["cells"]]
    others = [cell["others_cores"] for cell in cells]
    disturbed = sum(cell["disturbed"] for cell in cells)
    return {
        "vs_transformers": headline.get("vs_transformers", {}),
        "vs_monolithic": headline.get("vs_monolithic", {}),
        "tpot_ms": headline.get("tpot_ms", {}).get(CLUSTER, {}),
        "output_tokens_per_s": headline.get("output_tokens_per_s", {}).get(CLUSTER, {}),
        "step_breakdown_us": headline.get("step_breakdown_us", {}).get(CLUSTER, {}),
        "headline": {"checkpoint": name, "dtype": dtype, "cluster": CLUSTER},
        "command": shlex.join(["python", "-m", "benchmarks.serving", *sys.argv[1:]]),
        "commit": commit(REPOSITORY),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "hardware": hardware(cores),
        "load": (
            f"Others used {statistics.median(others):.2f} cores in the median over {len(cells)} measurements "
            f"(at most {max(others):.2f}); {disturbed} of them count as disturbed and are left out where others exist."
        ),
        "workload": {
            "prompt_tokens": Workload(vocab_size=1).prompt_tokens,
            "output_tokens": given.output_tokens,
            "sampling": "greedy, ignore_eos",
            "arrival": "all requests at once, streamed over HTTP (transformers: one batch in its own process)",
            "rounds": given.rounds,
        },
        "models": models,
    }


def _write(given: argparse.Namespace, result: dict[str, Any]) -> None:
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(json.dumps(result, indent=1) + "\n")
    if given.document:
        write_into(given.document, tables(result), result="serving.json")


if __name__ == "__main__":
    sys.exit(main())
