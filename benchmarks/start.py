"""How long a role takes to start, beside reading its own bytes and doing nothing with them.

    python -m benchmarks.start [--layers 5] [--runs 5] [--write]

A random checkpoint of OLMoE's shape (4.6 GB with 5 layers) is written, and each role started as ``janus up`` starts it:
forked from a process that has loaded torch. Measured from the fork until the weights can be used:

- load: the attention half as an attention-server loads it, or all experts as an expert-server with all of them does;
- raw: ``preadv`` of the very same byte ranges, in order, into new memory on huge pages, by one thread.

Runs alternate. Warm: the file is in the page cache. Cold: it is dropped from there before every run (a hypervisor's
cache is not). A process that is not forked but started anew spends the time under ``imports_s`` before that.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import structlog
import torch
from benchmarks.serving.machine import CpuMeter, commit, hardware
from benchmarks.serving.worker import REPOSITORY

from janus.messages.control import PlacementTable
from janus.model.attention_model import AttentionModel
from janus.model.checkpoint import Checkpoint
from janus.model.fp8 import scale_name
from janus.model.inventory import EXPERTS, parts_of
from janus.model.memory import huge_bytes
from janus.runtime.device import prepare
from janus.runtime.expert_engine import ExpertEngine

RESULT = REPOSITORY / "benchmarks" / "results" / "start.json"
_DTYPE = torch.bfloat16
_IMPORTS = "import torch, janus_expert_server.service, janus_attention_server.service"


@dataclass(frozen=True, slots=True)
class Range:
    """Bytes of one tensor."""

    file: Path
    offset: int
    nbytes: int


def ranges_of(path: Path) -> dict[str, list[Range]]:
    """Return what each role reads of the checkpoint, in the order of the file."""
    checkpoint = Checkpoint.open(path)
    found: dict[str, list[Range]] = {"attention": [], "expert": []}
    for part in parts_of(checkpoint.config, checkpoint.names):
        ranges = found["expert" if part.role == EXPERTS else "attention"]
        names = [name for spec in part.tensors for name in (spec.name, scale_name(spec.name)) if name in checkpoint]
        ranges += [Range(*checkpoint.where(name)) for name in names]
    checkpoint.close()
    return {role: sorted(each, key=lambda item: (item.file, item.offset)) for role, each in found.items()}


# -- what is timed, each in a process of its own -----------------------------------------------------------------------


def read_raw(ranges: Sequence[Range]) -> dict[str, Any]:
    """Read ``ranges`` into memory."""
    files = {file: os.open(file, os.O_RDONLY) for file in dict.fromkeys(each.file for each in ranges)}
    memory = huge_bytes(sum(each.nbytes for each in ranges)).numpy().data
    begin = 0
    for each in ranges:
        end, offset = begin + each.nbytes, each.offset
        while begin < end:
            count = os.preadv(files[each.file], [memory[begin:end]], offset)
            begin, offset = begin + count, offset + count
    return {"bytes": begin}


def load_attention(path: Path) -> dict[str, Any]:
    """Load the attention half."""
    checkpoint = Checkpoint.open(path)
    with torch.inference_mode():
        AttentionModel.load(checkpoint, checkpoint.config, _DTYPE)
    return {"bytes": checkpoint.bytes_read}


def load_experts(path: Path) -> dict[str, Any]:
    """Load every expert of every layer."""
    checkpoint = Checkpoint.open(path)
    config, device = checkpoint.config, torch.device("cpu")
    engine = ExpertEngine(checkpoint=checkpoint, config=config, dtype=_DTYPE, device=device, instance="expert-0")
    slots = [[list(range(config.num_experts))]] * config.num_moe_layers
    table = PlacementTable(epoch=1, num_experts=config.num_experts, instances=["expert-0"], slots=slots)
    with torch.inference_mode():
        report = asyncio.run(engine.load(table))
    if report.error:
        raise RuntimeError(report.error)
    return {"bytes": report.bytes_read, "ms_per_replica": 1e3 * report.seconds / report.replicas}


def prepared(load: Callable[[Path], dict[str, Any]], path: Path) -> dict[str, Any]:
    """Ready the process as a server does, and load."""
    prepare("cpu", 0)
    return load(path)


def in_a_fork(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what ``work`` did in a fork of this process, and ``seconds`` from before the fork until it was done."""
    receiving, sending = os.pipe()
    started = time.perf_counter()  # of the system's steady clock, which both read
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            result = work()
            result["seconds"] = time.perf_counter() - started
            os.write(sending, json.dumps(result).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(sending)
    with os.fdopen(receiving, "rb") as pipe:
        answer = pipe.read()
    if os.waitpid(pid, 0)[1] or not answer:
        raise RuntimeError("a measured process failed")
    result: dict[str, Any] = json.loads(answer)
    return result


# -- the campaign ------------------------------------------------------------------------------------------------------


def drop(files: Sequence[Path]) -> None:
    """Take ``files`` out of the page cache."""
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def measure(path: Path, runs: int) -> dict[str, Any]:
    """Return the figures of both roles, warm and cold."""
    loads = {"attention": load_attention, "expert": load_experts}
    roles: dict[str, Any] = {}
    for role, ranges in ranges_of(path).items():
        files, nbytes = sorted({each.file for each in ranges}), sum(each.nbytes for each in ranges)
        work = {"raw": partial(read_raw, ranges), "load": partial(prepared, loads[role], path)}
        figures: dict[str, Any] = {"bytes": nbytes, "ranges": len(ranges)}
        for state in ("warm", "cold"):
            results: dict[str, list[dict[str, Any]]] = {"raw": [], "load": []}
            if state == "warm":
                in_a_fork(work["raw"])
            for run in range(runs):
                for name in ("raw", "load") if run % 2 else ("load", "raw"):
                    if state == "cold":
                        drop(files)
                    result = in_a_fork(work[name])
                    if result["bytes"] != nbytes:
                        raise RuntimeError(f"{role}: {name} read {result['bytes']} bytes of {nbytes}")
                    results[name].append(result)
            figures[state] = summary(results, nbytes)
            print(f"{role} {state}: {json.dumps(figures[state])}", file=sys.stderr, flush=True)
        roles[role] = figures
    return roles


def summary(results: dict[str, list[dict[str, Any]]], nbytes: int) -> dict[str, Any]:
    """Return medians of the times, and of the ratio of each pair of runs."""
    raw, load = ([each["seconds"] for each in results[name]] for name in ("raw", "load"))
    figures: dict[str, Any] = {
        "ratio": round(statistics.median(b / a for a, b in zip(raw, load, strict=True)), 3),
        "load_s": round(statistics.median(load), 4),
        "raw_s": round(statistics.median(raw), 4),
        "load_gb_per_s": round(nbytes / statistics.median(load) / 1e9, 2),
    }
    replicas = [each["ms_per_replica"] for each in results["load"] if "ms_per_replica" in each]
    if replicas:
        figures["ms_per_replica"] = round(statistics.median(replicas), 3)
    return figures | {"all_raw_s": [round(each, 4) for each in raw], "all_load_s": [round(each, 4) for each in load]}


def imports_s(runs: int) -> float:
    """Return how long a new interpreter takes until a role's code is there."""
    taken = []
    for _ in range(runs):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", _IMPORTS], check=True)
        taken.append(time.perf_counter() - started)
    return round(statistics.median(taken), 3)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="OLMoE", help="name of janus models list (default: OLMoE)")
    parser.add_argument("--layers", type=int, default=5, help="its first layers (default: 5)")
    parser.add_argument("--experts", type=int, default=0, help="experts of a layer (default: the model's)")
    parser.add_argument("--set", default="", help="other keys of config.json, as of janus models random")
    parser.add_argument("--runs", type=int, default=5, help="pairs of runs (default: 5)")
    parser.add_argument("--directory", type=Path, help="where the checkpoint is written (default: a temporary one)")
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name} beside the other results")
    given = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    with tempfile.TemporaryDirectory(dir=given.directory, prefix="janus-start-") as directory:
        path = Path(directory) / "model"
        shape = ["--layers", str(given.layers), "--experts", str(given.experts), "--set", given.set]
        command = [sys.executable, "-m", "janus_cli", "models", "random", given.model, "--out", str(path)]
        subprocess.run([*command, *shape, "--no-tokenizer"], check=True)
        meter, before = CpuMeter({"benchmark": [os.getpid()]}), os.times()
        roles = measure(path, given.runs)
        use, after = meter.read(), os.times()
        size = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    # The processes that were measured have ended, and their time counts as this one's children's.
    children = after.children_user + after.children_system - before.children_user - before.children_system
    result = {
        "checkpoint": {"model": given.model, "layers": given.layers, "bytes": size, "dtype": "bfloat16"},
        "ratio": {role: {state: roles[role][state]["ratio"] for state in ("warm", "cold")} for role in roles},
        "ms_per_replica": {state: roles["expert"][state]["ms_per_replica"] for state in ("warm", "cold")},
        "roles": roles,
        "imports_s": imports_s(3),
        "runs": given.runs,
        "load": f"Others used {max(0.0, use.others_s - children) / use.wall_s:.2f} cores.",
        "command": shlex.join(["python", "-m", "benchmarks.start", *sys.argv[1:]]),
        "commit": commit(REPOSITORY),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "hardware": hardware(len(os.sched_getaffinity(0))),
    }
    print(json.dumps(result, indent=1))
    if given.write:
        RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
