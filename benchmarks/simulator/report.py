"""What docs/simulation.md has of the measurement."""

from __future__ import annotations

from typing import Any

from benchmarks.markdown import table


def text(result: dict[str, Any]) -> str:
    """Return Markdown."""
    cpu, cores = result["hardware"]["cpu"], result["hardware"]["cores_used"]
    parts = [
        f"Commit `{result['commit']}`, {result['date']}, {cpu}, {cores} cores, profile {result['profile']['name']}. "
        f"`{result['command']}`.",
        f"Error of TPOT and throughput over {len(result['points'])} points: median {result['median_error']:.1%}, worst "
        f"{result['worst_error']:.1%} (TPOT alone {result['median_tpot_error']:.1%}, throughput alone "
        f"{result['median_tokens_error']:.1%}, in the median). Bare, as if gateway, clients and other instances took "
        f"none of the cores: median {result['bare_median_error']:.1%}, worst {result['bare_worst_error']:.1%}.",
        _points(result["points"]),
    ]
    if result["profile_memory_gb_s"]:
        parts[1] += f" Memory was read at {result['profile_memory_gb_s']:.1f} GB/s while the profile was measured."
    if result["disturbed_points"]:
        parts.insert(
            2,
            f"**Others used the cores during {result['disturbed_points']} points**, and their errors are of that.",
        )
    if result["speed"]:
        parts += [
            "How fast a minute is simulated in which requests arrive, DeepSeek-V2 on H100s:",
            _speed(result["speed"]),
        ]
    return "\n\n".join(parts) + "\n"


def _points(rows: list[dict[str, Any]]) -> str:
    heading = [
        "point",
        "TPOT ms",
        "simulated",
        "error",
        "tokens/s",
        "simulated",
        "error",
        "bare",
        "others, cores",
        "memory, GB/s",
    ]
    lines = [
        [
            row["point"],
            f"{row['tpot_ms']:.2f}",
            f"{row['simulated_tpot_ms']:.2f}",
            f"{row['tpot_error']:+.1%}",
            f"{row['tokens_per_s']:.0f}",
            f"{row['simulated_tokens_per_s']:.0f}",
            f"{row['tokens_error']:+.1%}",
            f"{row['bare_tpot_error']:+.1%}, {row['bare_tokens_error']:+.1%}",
            f"{row['others_cores']:.2f}",
            f"{row['memory_gb_s']:.1f}" if row.get("memory_gb_s") else "-",
        ]
        for row in rows
    ]
    return table([heading, *lines])


def _speed(rows: list[dict[str, Any]]) -> str:
    heading = ["instances", "requests/s", "virtual s", "real s", "CPU s", "virtual / real"]
    lines = [
        [
            f"{row['instances']} ({row['attention']}A{row['experts']}E)",
            f"{row['rate']:g}",
            f"{row['virtual_s']:g}",
            f"{row['real_s']:.1f}",
            f"{row['cpu_s']:.1f}",
            f"{row['virtual_per_real']:.1f}",
        ]
        for row in rows
    ]
    return table([heading, *lines])
