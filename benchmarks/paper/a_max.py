"""Figures 13 and 17: experts on the busiest instance, by the policies that serve, for routing fitted to the paper's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from benchmarks.paper import published
from benchmarks.paper.routing import (
    OURS,
    PAPER,
    Effort,
    Fit,
    Policies,
    Routing,
    column,
    fit,
    table_of,
    trace_of,
)
from benchmarks.paper.rows import Found, Row

from janus.core.planning.catalog import named
from janus.core.planning.sizes import ModelSizes

#: Instances that the first column of figure 17 may be of.
READINGS = (6, 7, 8, 9, 10)
#: What it is fitted with where it is taken to be of six instances: experts unused, tokens of topics, or both.
FAMILIES = (
    *(Routing(unused=share) for share in (0.1, 0.2, 0.3, 0.35, 0.4)),
    *(Routing(clusters=clusters, affinity=2.0) for clusters in (4, 16)),
    Routing(unused=0.3, clusters=16, affinity=1.0),
)
SIZES = (16, 32, 64, 128, 256, 512)

#: Figure 13's lines.
LINES = {
    "EPLB": Policies("tokens", "token-balanced"),
    "random replica": Policies("tokens", "random"),
    "paper's AEBS": PAPER,
    "Janus": OURS,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """The first column of figure 17, explained."""

    #: With popularity alone, of as many instances as explain it best.
    best: Fit
    #: As labelled, of six instances, with whatever explains it best.
    labelled: Fit
    #: With popularity alone, per number of instances.
    readings: Sequence[Fit]


def fit_column(
    effort: Effort,
    *,
    readings: Sequence[int] = READINGS,
    families: Sequence[Routing] = FAMILIES,
    steps: int = 9,
) -> Fitted:
    """Fit routing to the column of six instances, and to nothing else.

    The column says that at most 123 of 160 experts are active at once (six times 20.47), though 512 tokens choose 3,072
    times. So it is fitted in two ways: as labelled, where experts have to be unused or topics narrow; and without
    either, where the number of instances that the column is of is fitted too.
    """
    model, wanted = named("DeepSeek-V2"), _first_column()
    found = [fit(model, wanted, instances=n, slots=published.SLOTS, effort=effort, steps=steps) for n in readings]
    labelled = fit(
        model,
        wanted,
        instances=published.FITTED_COLUMN,
        slots=published.SLOTS,
        effort=effort,
        families=(Routing(), *families),
        steps=steps,
    )
    return Fitted(best=min(found, key=lambda each: each.error), labelled=labelled, readings=found)


def _first_column() -> dict[int, float]:
    return {size: value for (n, size), value in published.A_MAX.items() if n == published.FITTED_COLUMN}


def figure_17(fitted: Fitted, effort: Effort) -> Found:
    """Predict the other columns of figure 17 from routing that is fitted to the first."""
    model = named("DeepSeek-V2")
    n = fitted.best.instances
    rows = []
    for reading, words in ((fitted.best, f"first column read as n_e = {n}"), (fitted.labelled, "as labelled")):
        others = [instances for instances, _ in published.A_MAX if instances != published.FITTED_COLUMN]
        table = _table(model, reading.routing, PAPER, sorted({*others}), effort)
        for (instances, size), paper in published.A_MAX.items():
            first = instances == published.FITTED_COLUMN
            rows.append(
                Row(
                    figure="17",
                    what=f"a_max, n_e = {instances}, B = {size}; {words}",
                    unit="experts",
                    paper=paper,
                    ours=reading.fitted[size] if first else column(table, instances)[size],
                    kind="fitted" if first else "predicted",
                    why=_why(reading, first=first),
                )
            )
    return Found(
        number="17",
        title="a_max of DeepSeek-V2 with 27 slots per instance",
        rows=rows,
        data={
            "effort": asdict(effort),
            "policies": {"paper": asdict(PAPER), "ours": asdict(OURS)},
            "readings": [each.as_json() for each in fitted.readings],
            "best": fitted.best.as_json(),
            "labelled": fitted.labelled.as_json(),
            "left_by_first_column": _left_by_first_column(),
            "table": _by_policies(model, fitted.best.routing, effort),
        },
    )


def _why(reading: Fit, *, first: bool) -> str:
    if first:
        return f"{reading.routing}, fitted to this column"
    if reading.instances == published.FITTED_COLUMN:
        return f"{reading.routing}; the first column leaves too few active experts, whatever the routing"
    return f"{reading.routing}, and the paper's placement and scheduler"


def _left_by_first_column() -> list[dict[str, Any]]:
    """Return what six instances' a_max leaves for others: no more experts are active than six times as many."""
    found = []
    for (instances, size), paper in published.A_MAX.items():
        first = published.A_MAX.get((published.FITTED_COLUMN, size))
        if instances != published.FITTED_COLUMN and first is not None:
            most = published.FITTED_COLUMN * first
            entry = {"instances": instances, "batch": size, "active_at_most": round(most, 2)}
            found.append(entry | {"per_instance": round(most / instances, 3), "paper": paper})
    return found


def _by_policies(model: ModelSizes, routing: Routing, effort: Effort) -> list[dict[str, Any]]:
    """Return a_max by instances and batch, the paper's policies and ours, with standard errors."""
    instances = (6, 8, 12, 16)
    paper, ours = (_table(model, routing, policies, instances, effort) for policies in (PAPER, OURS))
    return [
        {
            "instances": n,
            "batch": size,
            "paper": round(column(paper, n)[size], 3),
            "ours": round(column(ours, n)[size], 3),
            "error": round(float(ours.error[instances.index(n), ours.batches.index(size)]), 3),
        }
        for n in instances
        for size in SIZES
    ]


def figure_13(routing: Routing, effort: Effort) -> Found:
    """Compare AEBS with EPLB on 8, 12 and 16 instances."""
    model = named("DeepSeek-V2")
    tables = {name: _table(model, routing, policies, published.BELOW_EPLB, effort) for name, policies in LINES.items()}
    lines, rows = [], []
    for instances in published.BELOW_EPLB:
        of_line = {name: [column(table, instances)[size] for size in SIZES] for name, table in tables.items()}
        lines.append({"instances": instances, "batches": list(SIZES), "a_max": _rounded(of_line)})
        for ours in ("paper's AEBS", "Janus"):
            ratios = [a / b for a, b in zip(of_line[ours], of_line["EPLB"], strict=True)]
            rows.append(
                Row(
                    figure="13",
                    what=f"a_max over EPLB's, largest of all batch sizes, n_e = {instances}; {ours}",
                    unit="ratio",
                    paper=(0.0, 1.0),
                    ours=max(ratios),
                    kind="predicted",
                    why=f"below at every batch size, as the paper says; smallest {min(ratios):.2f}",
                )
            )
    return Found(
        number="13",
        title="a_max by policy and batch size",
        rows=rows,
        data={
            "routing": asdict(routing),
            "policies": {name: asdict(each) for name, each in LINES.items()},
            "active": {str(size): round(_active(model, routing, effort, size), 2) for size in SIZES},
            "lines": lines,
        },
    )


def _table(model: ModelSizes, routing: Routing, policies: Policies, instances: Sequence[int], effort: Effort) -> Any:
    return table_of(model, routing, policies, slots=published.SLOTS, instances=instances, sizes=SIZES, effort=effort)


def _active(model: ModelSizes, routing: Routing, effort: Effort, size: int) -> float:
    """Return the mean number of distinct experts that a batch chooses."""
    trace = trace_of(model.experts, model.top_k, routing, effort)
    chosen = [np.bincount(layer.ravel(), minlength=model.experts) / len(layer) for layer in trace]
    return float(np.mean([(1 - (1 - share) ** size).sum() for share in chosen]))


def _rounded(lines: dict[str, list[float]]) -> dict[str, list[float]]:
    return {name: [round(value, 3) for value in values] for name, values in lines.items()}
