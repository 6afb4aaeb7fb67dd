"""Figures 1 and 2: why attention and experts want numbers of their own - layer times by batch, and where bytes are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.paper import published
from benchmarks.paper.rows import Found, Row
from benchmarks.paper.systems import JANUS, World, load_of, sizes_of

from janus.core.planning.layer_times import attention_layer_s, expert_layer_s
from janus.core.planning.performance import Deployment

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
#: Expert instances of figure 1's layer: the fewest that hold DeepSeek-V2.
EXPERTS = 6
#: Longer by so much is no longer flat.
_FLAT = 1.1
#: Where that ends is looked for up to this batch, in steps of four.
_FINE = 10_000
#: Peaks by data sheet, dense bfloat16 FLOP/s and bytes per second: NVIDIA H100 SXM, A100 SXM 80 GB.
PEAKS = {"H100": (989e12, 3.35e12), "A100": (312e12, 2.039e12)}
#: Bytes that differ by less are the same: the paper seems to count a first layer without experts in.
_NEAR = 0.02
#: The paper's models, by the names of the catalog.
MODELS = {"qwen3-235b-a22b": "Qwen3-235B-A22B", "deepseek-v2": "DeepSeek-V2", "deepseek-v3": "DeepSeek-V3"}


def figure_1(world: World, batches: Sequence[int] = BATCHES) -> Found:
    """Time one layer of DeepSeek-V2 by batch: one attention instance, and experts on six."""
    setting = world.setting(JANUS, "DeepSeek-V2")
    points = [_layer(world, batch) for batch in batches]
    fine = [_layer(world, batch) for batch in range(1, _FINE, 4)]
    first = fine[0]["attention_us"]
    flat_to = max(each["batch"] for each in fine if each["attention_us"] <= _FLAT * first)
    most = max(each["a_max"] for each in points)
    all_from = min(each["batch"] for each in fine if each["a_max"] >= most / _FLAT)
    level = _layer(world, all_from)["experts_us"]
    experts_flat_to = max(each["batch"] for each in fine if each["experts_us"] <= _FLAT * level)
    rows = [
        Row(
            figure="1",
            what="batch up to which attention's layer time is flat, within 10 %",
            unit="tokens",
            paper=float(published.ATTENTION_FLAT_TO),
            ours=float(flat_to),
            kind="predicted",
            why="weights are read either way; published rates of an H100 without software's share",
        ),
        Row(
            figure="1",
            what="batch from which experts' layer time is flat: nearly all are activated",
            unit="tokens",
            paper=None,
            ours=float(all_from),
            kind="predicted",
            why=f"a_max {most:.1f} of {setting.slots} slots",
        ),
        Row(
            figure="1",
            what="batch up to which it is",
            unit="tokens",
            paper=(1000.0, 9999.0),
            ours=float(experts_flat_to),
            kind="predicted",
            why='"thousands" in the paper',
        ),
    ]
    data = {"model": "DeepSeek-V2", "experts": EXPERTS, "points": points}
    return Found(number="1", title="Layer time by batch: DeepSeek-V2, H100", rows=rows, data=data)


def _layer(world: World, batch: int) -> dict[str, Any]:
    setting = world.setting(JANUS, "DeepSeek-V2")
    device = setting.device
    deployment = Deployment(attention=1, experts=EXPERTS, attention_device=device, expert_device=device)
    load = load_of(batch)
    attention, _ = attention_layer_s(setting.model, world.profile, deployment, load)
    a_max = float(setting.a_max(EXPERTS, batch))
    experts = expert_layer_s(setting.model, world.profile, deployment, load, a_max)
    return {
        "batch": batch,
        "attention_us": round(1e6 * float(attention), 2),
        "experts_us": round(1e6 * float(experts), 2),
        "a_max": round(a_max, 2),
    }


def figure_2() -> Found:
    """Count what decoding reads: from which batch arithmetic matters, and how many of the bytes are experts'."""
    model = sizes_of("DeepSeek-V3")
    rows = []
    for device, (flops_s, bytes_s) in PEAKS.items():
        # A product of b rows does 2 b operations per parameter of two bytes.
        rows.append(
            Row(
                figure="2",
                what=f"tokens from which DeepSeek-V3's experts are bound by arithmetic, {device}",
                unit="tokens",
                paper=published.RIDGE[device],
                ours=flops_s / bytes_s * model.experts / model.top_k,
                kind="counted",
                why="the paper's is the peak with sparsity, 1,979 TFLOP/s; dense it is half"
                if device == "H100"
                else "",
            )
        )
    gigabytes = {}
    for paper_name, name in MODELS.items():
        sizes = sizes_of(name)
        experts, total = sizes.expert_side_bytes, sizes.expert_side_bytes + sizes.attention_side_bytes
        paper_experts, paper_total = published.EXPERT_GB[paper_name]
        rows.append(
            Row(
                figure="2",
                what=f"experts' share of {name}'s bytes",
                unit="share",
                paper=paper_experts / paper_total,
                ours=experts / total,
                kind="counted",
                why=_units(experts, total, paper_experts, paper_total),
            )
        )
        gigabytes[name] = {
            "experts_gb": round(experts / 1e9, 1),
            "all_gb": round(total / 1e9, 1),
            "experts_gib": round(experts / 2**30, 1),
            "all_gib": round(total / 2**30, 1),
            "paper": list(published.EXPERT_GB[paper_name]),
        }
    return Found(number="2", title="Where the bytes are", rows=rows, data={"bfloat16": gigabytes})


def _units(experts: float, total: float, paper_experts: float, paper_total: float) -> str:
    """Say in which unit each of the paper's two numbers is ours, if in one."""

    def unit(ours: float, paper: float) -> str:
        near = {"GiB": ours / 2**30, "GB": ours / 1e9}
        return next((name for name, value in near.items() if abs(value / paper - 1) < _NEAR), "neither GiB nor GB")

    return f"ours are the paper's experts in {unit(experts, paper_experts)}, its total in {unit(total, paper_total)}"
