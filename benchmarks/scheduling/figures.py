"""The plots of docs/scheduling.md."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.scheduling.plot import Line, Panel, chart

#: Colours that differ for colour-blind eyes too, after Okabe and Ito (2008).
_COLOURS = {
    "token-balanced": "#d55e00",
    "random": "#56b4e9",
    "static": "#8a8a8a",
    "aebs": "#0072b2",
    "aebs-greedy": "#f0a0c8",  # on top of aebs, which it mostly hides behind
}
_WIDTHS = {"aebs": 4.0, "aebs-greedy": 1.6}


def figures(result: dict[str, Any]) -> dict[str, str]:
    """Return SVG text by file name; only those for which the result has cases."""
    cases, times = result["cases"], result["layer_time"]
    large = [case for case in cases if (case["shape"], case["routing"]) == ("deepseek-v2", "zipf-1.0")]
    tiny = [case for case in cases if (case["shape"], case["routing"]) == ("janus-tiny", "mixed")]
    found = {
        "scheduling-a-max.svg": ("DeepSeek-V2, Zipf 1.0, 27 slots per instance", _panels(large, (8, 12, 16))),
        "scheduling-janus-tiny.svg": ("janus-tiny, routing recorded from text, 24 slots", _panels(tiny, (3, 4, 8))),
    }
    charts = {
        name: chart(f"a_max by batch size: {title}", panels, x_label="tokens in the batch", y_label="a_max (mean)")
        for name, (title, panels) in found.items()
        if panels
    }
    if panels := _time_panels(times):
        charts["scheduling-layer-time.svg"] = chart(
            "Modelled time of an MoE layer: DeepSeek-V3, 16 instances, H100",
            panels,
            x_label="tokens in the batch",
            y_label="expert weight reads",
            y_log=True,
        )
    return charts


def _panels(cases: Sequence[dict[str, Any]], instances: Sequence[int]) -> list[Panel]:
    panels = []
    for n in instances:
        chosen = [case for case in cases if case["instances"] == n]
        if len(chosen) > 1:
            lines = [
                Line(
                    name="aebs = optimum" if policy == "aebs" else policy,
                    colour=colour,
                    points=[(case["batch"], case["a_max"][policy]) for case in chosen],
                    width=_WIDTHS.get(policy, 2.0),
                )
                for policy, colour in _COLOURS.items()
            ]
            panels.append(Panel(title=f"{n} instances", lines=lines))
    return panels


def _time_panels(times: Sequence[dict[str, Any]]) -> list[Panel]:
    panels = []
    for routing in ("uniform", "zipf-0.6", "zipf-1.0"):
        chosen = [
            time
            for time in times
            if (time["shape"], time["routing"], time["device"]) == ("deepseek-v3", routing, "H100")
        ]
        if len(chosen) > 1:
            lines = [
                Line(
                    name=policy,
                    colour=_COLOURS[policy],
                    points=[(time["batch"], time["time"][policy]) for time in chosen],
                    width=_WIDTHS.get(policy, 2.0),
                )
                for policy in ("token-balanced", "aebs")
            ]
            panels.append(Panel(title=routing, lines=lines))
    return panels
