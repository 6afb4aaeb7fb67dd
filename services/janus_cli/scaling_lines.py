"""The autoscaler in ``janus status``: what it decided last, and why."""

from __future__ import annotations

from collections.abc import Iterator

from rich.markup import escape

from janus.messages.control import ScalingStatus


def scaling_lines(scaling: ScalingStatus) -> Iterator[str]:
    """Yield a line on the last decision, and one each on what runs and on what failed."""
    mode = "autoscaler" + (" (dry run)" if scaling.mode == "dry-run" else "")
    if not scaling.reason:
        yield f"{mode}: has not decided yet"
    else:
        change = scaling.present if scaling.present == scaling.wanted else f"{scaling.present} -> {scaling.wanted}"
        yield f"{mode}: {change}, {scaling.age_s:.0f} s ago ({scaling.reason}): {escape(scaling.why)}"
    if scaling.operation:
        yield f"{mode}: {escape(scaling.operation)} now"
    if scaling.problem:
        yield f"[yellow]![/yellow] {mode}: the last operation failed: {escape(scaling.problem)}"
