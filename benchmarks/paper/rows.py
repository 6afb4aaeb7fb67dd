"""What a figure comes to: what the paper reports, what we find, how far apart, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

#: A figure, or the least and the most of several.
Published: TypeAlias = float | tuple[float, float]
#: What our figure is. ``fitted``: routing was chosen to meet it. ``calibrated``: coefficients of the cost model were.
#: ``predicted``: follows from these without looking at it. ``measured``: on the machine of the result file that it is
#: from. ``counted``: arithmetic on the model's shapes.
Kind: TypeAlias = Literal["fitted", "calibrated", "predicted", "measured", "counted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One figure of the paper beside ours."""

    figure: str
    what: str
    unit: str
    #: ``None``: the paper has no number, only a tendency, which ``what`` states.
    paper: Published | None
    #: ``None``: not measured.
    ours: float | None
    kind: Kind
    why: str = ""

    @property
    def difference(self) -> float | None:
        """Ours over the paper's, less 1; to the nearer end of a range, 0 within it."""
        if self.paper is None or self.ours is None:
            return None
        low, high = sorted(self.paper) if isinstance(self.paper, tuple) else (self.paper, self.paper)
        nearest = min(max(self.ours, low), high)
        return self.ours / nearest - 1 if nearest else None

    def as_json(self) -> dict[str, Any]:
        """Return it as the result file has it."""
        difference = self.difference
        return {
            "figure": self.figure,
            "what": self.what,
            "unit": self.unit,
            "paper": list(self.paper) if isinstance(self.paper, tuple) else self.paper,
            "ours": None if self.ours is None else _rounded(self.ours),
            "difference": None if difference is None else round(difference, 4),
            "kind": self.kind,
            "why": self.why,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A figure, reproduced."""

    number: str
    title: str
    rows: Sequence[Row]
    #: What its plot shows, and the parameters behind it.
    data: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return it as the result file has it."""
        return {
            "figure": self.number,
            "title": self.title,
            "rows": [row.as_json() for row in self.rows],
            "data": self.data,
        }


def _rounded(value: float) -> float:
    """Four significant digits: more would pretend to a precision that no model here has."""
    return float(f"{value:.4g}")
