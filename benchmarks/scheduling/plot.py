"""Line charts as SVG text: panels side by side over one legend, on a white card that reads on any page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM, _GAP = 250, 230, 62, 58, 84, 44
_LEGEND_ROW = 20
_FONT = "font-family='system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif'"
_INK, _FAINT, _GRID = "#222222", "#666666", "#e6e6e6"


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One series. ``points``: (x, y)."""

    name: str
    colour: str
    points: Sequence[tuple[float, float]]
    dash: str = ""
    width: float = 2.0
    marks: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One diagram."""

    title: str
    lines: Sequence[Line]


def chart(
    title: str, panels: Sequence[Panel], *, x_label: str, y_label: str, y_log: bool = False, x_log: bool = True
) -> str:
    """Return the SVG. All panels share both axes; one that is not logarithmic begins at 0, if it is y."""
    points = [point for panel in panels for line in panel.lines for point in line.points]
    xs = sorted({x for x, _ in points})
    ys = [y for _, y in points]
    scale = _Scale(xs[0], xs[-1], *_range(ys, y_log), y_log=y_log, x_log=x_log)
    width = _LEFT + len(panels) * (_WIDTH + _GAP) - _GAP + 20
    names = {line.name: line for panel in panels for line in panel.lines}
    legend = _legend_rows(list(names.values()), width)
    height = _TOP + _HEIGHT + _BOTTOM + (len(legend) - 1) * _LEGEND_ROW
    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' width='{width}' height='{height}' "
        f"role='img' {_FONT}>",
        f"<title>{escape(title)}</title>",
        f"<rect width='{width}' height='{height}' rx='6' fill='#ffffff'/>",
        _text(_LEFT, 24, title, size=15, weight=600, anchor="start"),
        _text(16, _TOP + _HEIGHT / 2, y_label, size=12, turn=True),
        _text((width + _LEFT - 20) / 2, _TOP + _HEIGHT + 40, x_label, size=12),
    ]
    for index, panel in enumerate(panels):
        left = _LEFT + index * (_WIDTH + _GAP)
        parts.append(f"<g transform='translate({left} {_TOP})'>")
        parts += _axes(panel, scale, xs, labelled=index == 0)
        parts += [_path(line, scale) for line in panel.lines]
        parts.append("</g>")
    for row, lines in enumerate(reversed(legend)):
        parts += _legend(lines, width, height - 18 - row * _LEGEND_ROW)
    return "\n".join([*parts, "</svg>"]) + "\n"


@dataclass(frozen=True, slots=True)
class _Scale:
    x_first: float
    x_last: float
    y_low: float
    y_high: float
    y_log: bool
    x_log: bool = True

    def x(self, value: float) -> float:
        if not self.x_log:
            return _WIDTH * (value - self.x_first) / (self.x_last - self.x_first)
        return _WIDTH * math.log(value / self.x_first) / math.log(self.x_last / self.x_first)

    def y(self, value: float) -> float:
        if self.y_log:
            share = math.log(value / self.y_low) / math.log(self.y_high / self.y_low)
        else:
            share = (value - self.y_low) / (self.y_high - self.y_low)
        return _HEIGHT * (1 - share)

    def x_ticks(self, xs: Sequence[float]) -> list[float]:
        if self.x_log:
            return [x for x in xs if math.log2(x) % 2 == 0]
        step = _step(self.x_last - self.x_first)
        first, last = math.ceil(self.x_first / step), math.floor(self.x_last / step)
        return [step * number for number in range(first, last + 1)]

    def y_ticks(self) -> list[float]:
        if self.y_log:
            first, last = math.floor(math.log2(self.y_low)), math.ceil(math.log2(self.y_high))
            return [2.0**power for power in range(first, last + 1) if self.y_low <= 2.0**power <= self.y_high]
        step = _step(self.y_high)
        return [step * number for number in range(round(self.y_high / step) + 1)]


def _range(ys: Sequence[float], y_log: bool) -> tuple[float, float]:
    if y_log:
        return 2.0 ** math.floor(math.log2(min(ys))), 2.0 ** math.ceil(math.log2(max(ys)))
    return 0.0, math.ceil(max(ys) / _step(max(ys))) * _step(max(ys))


def _step(top: float) -> float:
    """Return a round distance that makes about five ticks."""
    rough = top / 5
    power = 10.0 ** math.floor(math.log10(rough))
    return min((power * factor for factor in (1, 2, 5, 10)), key=lambda step: abs(step - rough))


def _axes(panel: Panel, scale: _Scale, xs: Sequence[float], *, labelled: bool) -> list[str]:
    parts = [_text(_WIDTH / 2, -10, panel.title, size=12, colour=_FAINT)]
    for tick in scale.y_ticks():
        y = scale.y(tick)
        parts.append(f"<line x1='0' x2='{_WIDTH}' y1='{y:.1f}' y2='{y:.1f}' stroke='{_GRID}'/>")
        if labelled:
            parts.append(_text(-8, y + 4, f"{tick:g}", size=11, colour=_FAINT, anchor="end"))
    parts.append(f"<line x1='0' x2='{_WIDTH}' y1='{_HEIGHT}' y2='{_HEIGHT}' stroke='{_INK}'/>")
    parts += [_text(scale.x(x), _HEIGHT + 17, _short(x), size=11, colour=_FAINT) for x in scale.x_ticks(xs)]
    return parts


def _short(value: float) -> str:
    return f"{value / 1024:g}k" if value >= 1024 else f"{value:g}"


def _path(line: Line, scale: _Scale) -> str:
    at = [(scale.x(x), scale.y(y)) for x, y in line.points]
    dash = f" stroke-dasharray='{line.dash}'" if line.dash else ""
    drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
    path = f"<polyline points='{drawn}' fill='none' stroke='{line.colour}' stroke-width='{line.width}'{dash}/>"
    if not line.marks:
        return path
    dots = [f"<circle cx='{x:.1f}' cy='{y:.1f}' r='2.6' fill='{line.colour}'/>" for x, y in at]
    return "\n".join([path, *dots])


def _legend_rows(lines: Sequence[Line], width: float) -> list[list[Line]]:
    """Break the legend where a row is full."""
    rows: list[list[Line]] = [[]]
    for line in lines:
        if rows[-1] and sum(map(_length, rows[-1])) + _length(line) > width:
            rows.append([])
        rows[-1].append(line)
    return rows


def _length(line: Line) -> int:
    return 44 + 7 * len(line.name)


def _legend(lines: Sequence[Line], width: float, y: float) -> list[str]:
    lengths = [_length(line) for line in lines]
    x = (width - sum(lengths)) / 2
    parts = []
    for line, length in zip(lines, lengths, strict=True):
        dash = f" stroke-dasharray='{line.dash}'" if line.dash else ""
        parts.append(
            f"<line x1='{x:.0f}' x2='{x + 24:.0f}' y1='{y - 4}' y2='{y - 4}' stroke='{line.colour}' "
            f"stroke-width='{line.width + 0.5}'{dash}/>"
        )
        parts.append(_text(x + 30, y, line.name, size=12, anchor="start"))
        x += length
    return parts


def _text(
    x: float,
    y: float,
    text: str,
    *,
    size: int,
    colour: str = _INK,
    weight: int = 400,
    anchor: str = "middle",
    turn: bool = False,
) -> str:
    turned = f" transform='rotate(-90 {x:.1f} {y:.1f})'" if turn else ""
    return (
        f"<text x='{x:.1f}' y='{y:.1f}' font-size='{size}' font-weight='{weight}' fill='{colour}' "
        f"text-anchor='{anchor}'{turned}>{escape(text)}</text>"
    )
