"""What ``janus status`` says of the placement: epochs, replicas, the last move, the last failure, the scheduler."""

from __future__ import annotations

from collections.abc import Iterator

from janus.messages.control import Move, StatusReport


def placement_lines(report: StatusReport) -> Iterator[str]:
    """Yield one line per fact that is known."""
    yield f"placement epoch: {_epoch(report)}"
    if report.replicas:
        yield f"replicas: {_replicas(report.replicas)}"
    if report.last_move is not None:
        yield f"last move: {_move(report.last_move)}"
    if report.last_failure is not None:
        failure = report.last_failure
        yield f"last failure: {failure.instance}, {_ago(failure.age_s)}: {failure.why}"
    if line := _scheduling(report):
        yield line


def _epoch(report: StatusReport) -> str:
    move = report.last_move
    loading = f"epoch {move.epoch} is loading" if move is not None and move.outcome == "loading" else ""
    if report.view.placement is not None:
        in_force = report.view.placement.epoch
        older = report.view.oldest_epoch
        parts = [loading, f"epoch {older} is still in use" if 0 < older < in_force else ""]
        return "; ".join([str(in_force), *filter(None, parts)])
    expected = [*report.view.missing, *(member.instance for member in report.view.members if member.role == "expert")]
    if any(name.startswith("expert") for name in expected):
        return "none yet: experts are missing or loading" + (f"; {loading}" if loading else "")
    return "none: experts are in the attention instances (monolithic)"


def _replicas(replicas: list[list[int]]) -> str:
    """``replicas[layer][expert]`` in a line."""
    counts = [count for layer in replicas for count in layer]
    spare = sum(max(0, count - 1) for count in counts)
    least, most = min(counts), max(counts)
    per_expert = f"{least}" if least == most else f"{least} to {most}"
    size = f"{len(replicas)} MoE layers of {len(replicas[0])} experts"
    lost = sum(count == 0 for count in counts)
    return f"{per_expert} per expert, {spare} spare, in {size}" + (f"; {lost} experts are nowhere" if lost else "")


def _move(move: Move) -> str:
    text = f"epoch {move.epoch} ({move.reason}): {move.outcome}"
    if move.outcome == "loading":
        text += f" {move.replicas} replicas"
    else:
        text += f" after {move.seconds:.2f} s, {move.replicas} replicas, {move.bytes_read / 2**20:.0f} MiB read"
    if move.a_max_before or move.a_max_after:
        text += f"; expected a_max {move.a_max_before:.2f} -> {move.a_max_after:.2f}"
    return text + (f"; {move.problem}" if move.problem else "")


def _ago(seconds: float) -> str:
    return f"{seconds:.0f} s ago" if seconds < 120 else f"{seconds / 60:.0f} min ago"


def _scheduling(report: StatusReport) -> str:
    """Which scheduler the attention instances use, and how good its choices were; empty when there is none."""
    parts = []
    for name in sorted({heartbeat.scheduler for heartbeat in report.heartbeats.values() if heartbeat.scheduler}):
        shares = [
            heartbeat.proven_share
            for heartbeat in report.heartbeats.values()
            if heartbeat.scheduler == name and heartbeat.proven_share is not None
        ]
        proven = f" ({min(shares):.1%} of its choices proven the best possible)" if shares else ""
        parts.append(f"{name}{proven}")
    return f"scheduler: {', '.join(parts)}" if parts else ""
