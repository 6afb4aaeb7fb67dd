"""Figure 15: what choosing replicas costs. Measured on the CPU by ``benchmarks.scheduling``; not on a GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.paper import published
from benchmarks.paper.rows import Found, Row

_RESULT = Path(__file__).parents[1] / "results" / "scheduling.json"
_INSTANCES = 16


def figure_15(result: Path = _RESULT) -> Found:
    """Report the compiled scheduler's time per call, and that the GPU kernel's is not measured."""
    measured = json.loads(result.read_text())
    times = {
        each["batch"]: each
        for each in measured["cpu_us"]
        if (each["shape"], each["instances"], each["policy"]) == ("deepseek-v2", _INSTANCES, "aebs")
    }
    rows = []
    for batch, most in published.AEBS_US.items():
        what = f"AEBS per layer, B = {batch}, n_e = {_INSTANCES}"
        rows.append(
            Row(
                figure="15",
                what=f"{what}; compiled, CPU",
                unit="us",
                paper=(0.0, most),
                ours=times[batch]["median"],
                kind="measured",
                why=f"one core of {measured['hardware']['cpu']}; the paper bounds its kernel on an H100",
            )
        )
        gpu: dict[str, Any] = measured["gpu_us"] or {}
        rows.append(
            Row(
                figure="15",
                what=f"{what}; kernels/aebs.cu, GPU",
                unit="us",
                paper=(0.0, most),
                ours=gpu.get(str(batch)),
                kind="measured",
                why="" if gpu else "not measured: no GPU",
            )
        )
    return Found(
        number="15",
        title="Time to choose replicas",
        rows=rows,
        data={key: measured[key] for key in ("command", "commit", "date", "hardware")},
    )
