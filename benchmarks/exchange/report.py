"""The sweep as tables."""

from __future__ import annotations

from typing import Any

from benchmarks.exchange.sweep import ratios
from benchmarks.markdown import table


def tables(result: dict[str, Any]) -> str:
    """Return the result as Markdown."""
    parts = [_about(result)]
    for latency_us, rate_gbit in result["sweep"]["networks"]:
        cells = [c for c in result["cells"] if (c["latency_us"], c["rate_gbit"]) == (latency_us, rate_gbit)]
        network = f"{latency_us:g} us one way and {rate_gbit:g} Gbit/s"
        parts.append(f"Between nodes {network}, microseconds per layer of all instances:")
        parts.append(table([_HEADING, *(_row(cell) for cell in cells)]))
    parts.append("What crosses between nodes in a layer, all instances together: frames to experts, MB both ways:")
    parts.append(table([_COUNTS, *_counts(result["cells"])]))
    return "\n\n".join(parts) + "\n"


_HEADING = [
    "m x n",
    "H",
    "tokens",
    "direct",
    "aggregated",
    "two-phase",
    "auto",
    "EGate direct",
    "EGate two-phase",
    "direct / two-phase",
    "the same, apart",
    "auto / best",
]
_COUNTS = ["m x n", "H", "tokens", "direct", "aggregated", "two-phase", "direct MB", "two-phase MB"]


def _about(result: dict[str, Any]) -> str:
    hardware = result["hardware"]
    return (
        f"`{result['command']}`, {result['date']}, commit {result['commit']}, {hardware['cpu']}, "
        f"{hardware['cores_used']} cores for all instances and the network between them."
    )


def _row(cell: dict[str, Any]) -> list[str]:
    shown, ways = ratios(cell), cell["ways"]
    order = [f"attention/{way}" for way in ("direct", "aggregated", "two-phase", "auto")]
    order += ["expert/direct", "expert/two-phase"]
    return [
        f"{cell['attention']}x{cell['experts']}",
        str(cell["hidden"]),
        str(cell["tokens"]),
        *(f"{ways[way]['us']:.0f}" for way in order),
        f"{shown['two_phase_speedup']:.2f}",
        f"{ratios(cell, 'us_apart')['two_phase_speedup']:.2f}",
        f"{shown['auto_over_best']:.2f}",
    ]


def _counts(cells: list[dict[str, Any]]) -> list[list[str]]:
    rows, seen = [], set()
    for cell in cells:
        key = (cell["attention"], cell["experts"], cell["hidden"], cell["tokens"])
        if key in seen:
            continue
        seen.add(key)
        ways = {way: cell["ways"][f"attention/{way}"] for way in ("direct", "aggregated", "two-phase")}
        rows.append(
            [
                f"{key[0]}x{key[1]}",
                str(key[2]),
                str(key[3]),
                *(f"{found['frames_per_layer']:.1f}" for found in ways.values()),
                f"{ways['direct']['bytes_per_layer'] / 1e6:.2f}",
                f"{ways['two-phase']['bytes_per_layer'] / 1e6:.2f}",
            ]
        )
    return rows
