"""A plan as a picture, like figure 16 of arXiv 2512.13525: TPG over (n_a, n_e), and what is not feasible, and why.

Plain SVG: a browser shows it, and the numbers of a cell when pointed at.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

import numpy as np

from janus.core.planning.plan import Plan, Violated
from janus.core.planning.plane import Plane
from janus_cli.plan_tables import question

#: Pixels of a cell, and of what is around the map.
_WIDE, _HIGH = 30, 20
_LEFT, _TOP, _RIGHT, _BOTTOM = 70, 84, 230, 60
#: From little to much TPG: viridis at five places (Nunez, Anderton, Renslow, PLOS ONE 13, 2018, as matplotlib has it).
_RAMP = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
_GREYS = {
    Violated.SLOTS: "#d9d9d9",
    Violated.EXPERT_MEMORY: "#cfd4e6",
    Violated.ATTENTION_MEMORY: "#cfd4e6",
    Violated.THROUGHPUT: "#f4c7c3",
    Violated.PREFILL: "#f4c7c3",
    Violated.TPOT: "#f7ddd4",
    Violated.TTFT: "#f7ddd4",
    Violated.DEVICES: "#ececec",
}
_NAMES = {Violated.TPOT: "TPOT", Violated.TTFT: "TTFT", Violated.SLOTS: "slots: experts do not fit"}


def picture(plan: Plan) -> str:
    """Return the SVG of the variant that the chosen point is of."""
    d, plane = plan.nearest.deployment, plan.plane
    shape = plane.violated.shape
    columns = min(shape[0], max(12, 3 * d.attention))
    rows = min(shape[1], max(16, 2 * d.experts))
    return "\n".join(_svg(plan, plane, columns, rows)) + "\n"


def _svg(plan: Plan, plane: Plane, columns: int, rows: int) -> Iterator[str]:
    problem, d = plan.problem, plan.nearest.deployment
    width, height = _LEFT + columns * _WIDE + _RIGHT, _TOP + rows * _HIGH + _BOTTOM
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11">'
    )
    yield f'<rect width="{width}" height="{height}" fill="white"/>'
    title = f"{problem.model.name} on {problem.profile.name}: TPG, output tokens/s per device"
    yield _text(_LEFT, 24, title, size=15, weight="bold")
    yield _text(_LEFT, 44, f"{question(problem)}; {problem.tail} at most {1e3 * problem.slo_tpot_s:g} ms")
    variant = (
        f"{d.attention_device.name} + {d.expert_device.name}, {plane.slots} slots, micro-batches: {d.micro_batches}"
    )
    yield _text(
        _LEFT, 62, variant + (f", {d.tensor_parallel} devices per attention instance" * (d.tensor_parallel > 1))
    )
    feasible = plane.feasible[:columns, :rows]
    shown = np.where(feasible, plane.tokens_per_device_s[:columns, :rows], np.nan)
    low, high = (float(np.nanmin(shown)), float(np.nanmax(shown))) if feasible.any() else (0.0, 1.0)
    for a in range(columns):
        for e in range(rows):
            x, y = _LEFT + a * _WIDE, _TOP + (rows - 1 - e) * _HIGH
            point = plane.point(a + 1, e + 1, problem)
            if point.violated is None:
                share = (point.tokens_per_device_s - low) / (high - low) if high > low else 1.0
                fill, ink = _colour(share), "white" if share < 0.6 else "black"
                label = f"{point.tokens_per_device_s:.0f}"
                words = f"{point.name}: TPG {point.tokens_per_device_s:.1f}, TPOT {1e3 * point.tpot_s:.1f} ms"
            else:
                fill, ink, label = _GREYS[point.violated], "black", ""
                words = f"{point.name}: {point.violated}: {point.why}"
            yield f"<g><title>{escape(words)}</title>"
            yield f'<rect x="{x}" y="{y}" width="{_WIDE - 1}" height="{_HIGH - 1}" fill="{fill}"/>'
            if label:
                yield _text(x + _WIDE / 2, y + 14, label, size=9, anchor="middle", fill=ink)
            yield "</g>"
    yield from _axes(columns, rows)
    if plan.chosen is not None:
        x, y = _LEFT + (d.attention - 1) * _WIDE, _TOP + (rows - d.experts) * _HIGH
        yield (
            f'<rect x="{x - 1.5}" y="{y - 1.5}" width="{_WIDE + 2}" height="{_HIGH + 2}" fill="none" '
            f'stroke="#d62728" stroke-width="3"/>'
        )
    yield from _legend(plan, _LEFT + columns * _WIDE + 24, low, high, set(np.unique(plane.violated[:columns, :rows])))
    yield "</svg>"


def _axes(columns: int, rows: int) -> Iterator[str]:
    bottom = _TOP + rows * _HIGH
    for a in range(0, columns, 1 if columns <= 24 else 4):
        yield _text(_LEFT + (a + 0.5) * _WIDE, bottom + 16, str(a + 1), anchor="middle")
    for e in range(0, rows, 1 if rows <= 24 else 4):
        yield _text(_LEFT - 8, bottom - e * _HIGH - 6, str(e + 1), anchor="end")
    yield _text(_LEFT + columns * _WIDE / 2, bottom + 40, "attention instances", size=13, anchor="middle")
    y = _TOP + rows * _HIGH / 2
    yield (
        f'<text x="22" y="{y:g}" font-size="13" text-anchor="middle" transform="rotate(-90 22 {y:g})">'
        "expert instances</text>"
    )


def _legend(plan: Plan, x: float, low: float, high: float, there: set[int]) -> Iterator[str]:
    y = _TOP + 10.0
    if plan.chosen is not None:
        yield f'<rect x="{x}" y="{y - 10}" width="16" height="12" fill="none" stroke="#d62728" stroke-width="3"/>'
        yield _text(x + 24, y, f"chosen: {plan.chosen.name}", weight="bold")
        y += 26
        for step in range(5):
            share = 1 - step / 4
            yield f'<rect x="{x}" y="{y - 10}" width="16" height="12" fill="{_colour(share)}"/>'
            yield _text(x + 24, y, f"TPG {low + share * (high - low):.0f}")
            y += 16
        y += 10
    names = {number: violated for number, violated in enumerate(Violated, 1) if number in there}
    for violated in names.values():
        yield f'<rect x="{x}" y="{y - 10}" width="16" height="12" fill="{_GREYS[violated]}"/>'
        yield _text(x + 24, y, f"fails on {_NAMES.get(violated, violated)}")
        y += 16


def _colour(share: float) -> str:
    at = min(max(share, 0.0), 1.0) * (len(_RAMP) - 1)
    index = min(int(at), len(_RAMP) - 2)
    mixed = (a + (b - a) * (at - index) for a, b in zip(_RAMP[index], _RAMP[index + 1], strict=True))
    return "#" + "".join(f"{round(each):02x}" for each in mixed)


def _text(
    x: float,
    y: float,
    words: str,
    *,
    size: int = 11,
    weight: str = "normal",
    anchor: str = "start",
    fill: str = "black",
) -> str:
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size}" font-weight="{weight}" text-anchor="{anchor}" '
        f'fill="{fill}">{escape(words)}</text>'
    )
