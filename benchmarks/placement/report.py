"""The result as Markdown tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from benchmarks.markdown import table

from janus.core.placing import POLICIES

Case = dict[str, Any]


def tables(result: dict[str, Any]) -> str:
    """Return all tables, each under what it shows."""
    cases = result["cases"]
    machine = result["hardware"]
    return "\n\n".join(
        [
            f"Commit `{result['commit']}`, {result['date']}, {machine['cpu']}. "
            f"`{result['command']}`. Made from the first half of each trace, judged on the second, through AEBS.",
            "Mean a_max on the bundled model's recorded routing, all texts:",
            _quality([case for case in cases if not case["simulated"]]),
            "The same on simulated routing of larger models: experts by popularity, rank^-0.6, tokens independent, so "
            "that there is little co-activation to use:",
            _quality([case for case in cases if case["routing"] == "zipf-0.6"]),
            "And simulated with 16 topics, whose tokens choose the same experts more often:",
            _quality([case for case in cases if case["routing"] == "topics"]),
            "By text, 16 tokens per batch, without spare replicas, all numbers of instances:",
            _by_text([case for case in cases if not case["simulated"] and not case["spare"] and case["batch"] == 16]),
            _shifts(result["shifts"]),
            "Beside the least there is, by mixed-integer programming (HiGHS), on single layers of the bundled model; "
            "only what was proven in time:",
            _gaps(result["gaps"]),
        ]
    )


def _quality(cases: Sequence[Case]) -> str:
    keys = list(dict.fromkeys((c["shape"], c["instances"], c["slots"], c["batch"]) for c in cases))
    rows = [["model", "instances", "slots", "batch", *POLICIES, "less than static", "less than eplb"]]
    for key in keys:
        chosen = [c for c in cases if (c["shape"], c["instances"], c["slots"], c["batch"]) == key]
        means = {name: fmean(c["a_max"][name] for c in chosen) for name in POLICIES}
        rows.append([*map(str, key), *(f"{means[name]:.2f}" for name in POLICIES), *_less(means)])
    return table(rows)


def _less(means: dict[str, float]) -> list[str]:
    ours = means["activation-aware"]
    return [f"{1 - ours / means[name]:.1%}" for name in ("static", "eplb")]


def _by_text(cases: Sequence[Case]) -> str:
    rows = [["text", *POLICIES, "less than static", "less than eplb"]]
    for text in dict.fromkeys(case["routing"] for case in cases):
        means = {name: fmean(c["a_max"][name] for c in cases if c["routing"] == text) for name in POLICIES}
        rows.append([text, *(f"{means[name]:.2f}" for name in POLICIES), *_less(means)])
    return table(rows)


def _shifts(cases: Sequence[Case]) -> str:
    moved, stayed = ([c for c in cases if c["move"] is move] for move in (True, False))

    def row(name: str, chosen: Sequence[Case]) -> list[str]:
        def mean(of: Callable[[Case], float]) -> float:
            return fmean(map(of, chosen))

        if not chosen:
            return [name, "0", *["-"] * 4]
        return [
            name,
            str(len(chosen)),
            f"{mean(lambda c: c['predicted_gain']):.1%}",
            f"{mean(lambda c: 1 - c['a_max_move'] / c['a_max_stay']):.1%}",
            f"{mean(lambda c: c['loads'] / c['replicas']):.0%}",
            f"{mean(lambda c: c['bytes']) / 1e6:.1f} MB",
        ]

    first = cases[0]
    return (
        f"When the text changes: placed for one text, another one is served ({first['instances']} instances, "
        f"{first['slots']} slots, {first['batch']} tokens per batch):\n\n"
    ) + table(
        [
            ["verdict", "changes of text", "predicted gain", "gain on later tokens", "replicas to load", "bytes"],
            row("move", moved),
            row("stay", stayed),
        ]
    )


def _gaps(cases: Sequence[Case]) -> str:
    rows = [["objective", "layers", "proven", "mean gap", "largest gap"]]
    words = {
        "load": "tokens of the busiest host (eplb)",
        "a_max": "mean a_max of sampled batches (activation-aware, with the search)",
    }
    for objective, text in words.items():
        proven = [case[objective] for case in cases if case[objective]["proven"]]
        gaps = [each["found"] / each["least"] - 1 for each in proven] or [float("nan")]
        rows.append([text, str(len(cases)), str(len(proven)), f"{fmean(gaps):.1%}", f"{max(gaps):.1%}"])
    return table(rows)
