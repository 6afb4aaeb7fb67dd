"""The sweep as tables."""

from __future__ import annotations

from typing import Any

from benchmarks.exchange.ratios import FORCED, has_apart, ratios
from benchmarks.markdown import table
from benchmarks.transport.report import MAX_DIFFERENCE_US, MAX_RATIO, RATIO_FROM


def tables(result: dict[str, Any]) -> str:
    """Return the result as Markdown."""
    parts = [_about(result), _auto(result)]
    for latency_us, rate_gbit in result["sweep"]["networks"]:
        cells = [c for c in result["cells"] if (c["latency_us"], c["rate_gbit"]) == (latency_us, rate_gbit)]
        network = f"{latency_us:g} us one way and {rate_gbit:g} Gbit/s"
        parts.append(f"Between nodes {network}, microseconds per layer of all instances:")
        parts.append(table([_HEADING, *(_row(cell) for cell in cells)]))
    parts.append("What crosses between nodes in a layer, all instances together: frames to experts, MB both ways:")
    parts.append(table([_COUNTS, *_counts(result["cells"])]))
    parts.append("What a Janus link takes beside raw ucxx and a plain socket in the same run, one way over loopback:")
    parts.append(table([_LINKS, *_links(result)]))
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
    "layers until settled",
]
_LINKS = ["payload", "link-ucx", "ucxx", "ucxx-probe", "socket", "beside ucxx", "beside ucxx-probe", "goal"]
_COUNTS = ["m x n", "H", "tokens", "direct", "aggregated", "two-phase", "direct MB", "two-phase MB"]


def _about(result: dict[str, Any]) -> str:
    hardware = result["hardware"]
    return (
        f"`{result['command']}`, {result['date']}, commit {result['commit']}, {hardware['cpu']}, "
        f"{hardware['cores_used']} cores for all instances and the network between them."
    )


def _auto(result: dict[str, Any]) -> str:
    """How near auto is to the best way, over all cells."""
    said = []
    for name, found in result["auto_regret"].items():
        said.append(
            f"{name}, {found['median']:.0%} in the median and {found['worst']:.0%} at worst ({found['worst_in']}), at "
            f"most 10 % in {found['cells_within_10_percent']} of {found['cells']} cells"
        )
    return f"`auto` was slower than the best of the others by: {'; '.join(said)}."


def _links(result: dict[str, Any]) -> list[list[str]]:
    figures = {(each["stack"], each["bytes"]): each["trip_us"] for each in result["transport"]["figures"]}
    rows = []
    for nbytes, found in result["overhead_vs_ucxx"].items():
        size = int(nbytes)
        trips = [figures.get((stack, size)) for stack in _LINKS[1:5]]
        rows.append(
            [
                f"{size >> 10} KiB" if size >= 1024 else f"{size} B",
                *("-" if us is None else f"{us:.0f} us" for us in trips),
                _beside(size, found),
                _beside(size, result["overhead_vs_ucxx_probe"].get(nbytes)),
                f"{MAX_RATIO:g}x" if size >= RATIO_FROM else f"{MAX_DIFFERENCE_US:.0f} us",
            ]
        )
    return rows


def _beside(size: int, found: float | None) -> str:
    if found is None:
        return "-"
    return f"{found:.2f}x" if size >= RATIO_FROM else f"{found:+.0f} us"


def _row(cell: dict[str, Any]) -> list[str]:
    shown, ways = ratios(cell), cell["ways"]
    order = [f"attention/{way}" for way in (*FORCED, "auto")]
    order += ["expert/direct", "expert/two-phase"]
    return [
        f"{cell['attention']}x{cell['experts']}",
        str(cell["hidden"]),
        str(cell["tokens"]),
        *(f"{ways[way]['us']:.0f}" for way in order),
        f"{shown['two_phase_speedup']:.2f}",
        f"{ratios(cell, 'us_apart')['two_phase_speedup']:.2f}" if has_apart(cell) else "-",
        f"{shown['auto_over_best']:.2f}",
        str(cell["settled"]["layers"]) if cell["settled"]["all_tried"] else "-",
    ]


def _counts(cells: list[dict[str, Any]]) -> list[list[str]]:
    rows, seen = [], set()
    for cell in cells:
        key = (cell["attention"], cell["experts"], cell["hidden"], cell["tokens"])
        if key in seen:
            continue
        seen.add(key)
        ways = {way: cell["ways"][f"attention/{way}"] for way in FORCED}
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
