"""``python -m benchmarks.statistics``: writes benchmarks/results/statistics.json. Seconds; no model, no processes.

The step loop's part is timed alone, on tensors of the sizes of a step, and multiplied with how many steps of a second
are sampled when the default rate is asked for: steps themselves take from 1 ms (one stream on a tiny model) to 50 ms,
and vary from run to run by more than all that sampling costs.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.serving.machine import commit, hardware

from janus.config.fields import option_fields
from janus.config.options import AttentionOptions
from janus.core.activations import ActivationWindow
from janus.messages.control import RoutingSample
from janus.runtime.routing_sampler import RoutingSampler

_ROOT = Path(__file__).parents[2]
_RESULT = _ROOT / "benchmarks" / "results" / "statistics.json"


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A model's MoE layers, and how long a decode step of it takes at least."""

    name: str
    layers: int
    experts: int
    top_k: int
    step_ms: float


#: Step times: janus-tiny as measured on two cores with one stream; the others as fast as they could ever be.
SHAPES = (
    Shape(name="janus-tiny", layers=6, experts=16, top_k=4, step_ms=1.5),
    Shape(name="Qwen3-30B-A3B", layers=48, experts=128, top_k=8, step_ms=10.0),
    Shape(name="Qwen3-235B-A22B", layers=94, experts=128, top_k=8, step_ms=25.0),
)


def median_us(call: Callable[[], object], *, calls: int, rounds: int = 15) -> float:
    """The median over rounds of the mean time of a call."""
    rounds_us = []
    for _ in range(rounds):
        started = time.perf_counter_ns()
        for _ in range(calls):
            call()
        rounds_us.append((time.perf_counter_ns() - started) / calls / 1e3)
    return statistics.median(rounds_us)


def measure_steps(shape: Shape, streams: int, rate: int) -> dict[str, Any]:
    """Steps of ``streams`` tokens as they would come, sampled and not, and what that makes of every second."""
    ids = [torch.randint(0, shape.experts, (streams, shape.top_k), dtype=torch.int32) for _ in range(shape.layers)]
    never = RoutingSampler(0)
    unsampled_us = median_us(lambda: never.begin(streams), calls=10_000)
    sampler, took_ns, seconds, steps_per_s = RoutingSampler(rate, seed=1), [], 20, round(1e3 / shape.step_ms)
    for second in range(seconds + 2):
        for _ in range(steps_per_s):
            started = time.perf_counter_ns()
            sampled = sampler.begin(streams)
            if sampled is None:
                continue
            for layer in ids:
                sampled.add(layer)
            sampler.keep(sampled)
            if second >= 2:  # by then it knows how many tokens there are
                took_ns.append(time.perf_counter_ns() - started)
        sampler.take()
    sampled_us, sampled_per_s = statistics.median(took_ns) / 1e3, len(took_ns) / seconds
    return {
        "streams": streams,
        "unsampled_step_us": round(unsampled_us, 3),
        "sampled_step_us": round(sampled_us, 1),
        "sampled_steps_per_s": round(sampled_per_s, 1),
        "share_of_time": round((sampled_per_s * sampled_us + steps_per_s * unsampled_us) / 1e6, 6),
        "share_of_sampled_step": round(sampled_us / (shape.step_ms * 1e3), 5),
    }


def measure_window(shape: Shape, tokens: int) -> dict[str, Any]:
    """The controller's part: a message taken in, and everything counted."""
    source = np.random.default_rng(0)
    ids = np.argsort(source.random((shape.layers, 64, shape.experts)), axis=2)[..., : shape.top_k].astype("<u2")
    sample = RoutingSample(layers=shape.layers, tokens=64, top_k=shape.top_k, expert_ids=ids.tobytes(), seen=6400)
    window = ActivationWindow(shape.layers, shape.experts, shape.top_k, tokens=tokens)
    add_us = median_us(lambda: window.add(sample), calls=tokens // 64)

    def count() -> None:
        window.add(sample)
        window.activity()

    trace = window.trace(fingerprint="", saved_at=0.0)
    return {
        "window_tokens": tokens,
        "message_bytes": len(sample.expert_ids),
        "add_us": round(add_us, 1),
        "activity_ms": round(median_us(count, calls=1, rounds=5) / 1e3, 1),
        "file_bytes": len(trace.to_bytes()),
        "to_file_ms": round(median_us(trace.to_bytes, calls=1, rounds=5) / 1e3, 1),
    }


def main() -> int:
    """Measure, write the result, print it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.statistics", description=__doc__)
    parser.add_argument("--out", type=Path, default=_RESULT, help="file that is written")
    out = parser.parse_args().out
    torch.set_num_threads(1)
    rate = int(
        str(next(item for item in option_fields(AttentionOptions) if item.name == "routing_sample_rate").default)
    )
    with torch.inference_mode():
        shapes = [
            {
                **asdict(shape),
                "steps": [measure_steps(shape, streams, rate) for streams in (1, 8, 64, 512)],
                "controller": measure_window(shape, 4096),
            }
            for shape in SHAPES
        ]
    result = {
        "command": "python -m benchmarks.statistics",
        "commit": commit(_ROOT),
        "date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
        "hardware": hardware(1),
        "rate_tokens_per_s": rate,
        "shapes": shapes,
    }
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(shapes, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
