"""What real clusters showed, to be simulated now or later: measured by ``real.py``, or read from a result file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from benchmarks.simulator.points import POINTS, Cluster, ModelName, Point

from janus.core.planning.activation import AMaxTable, estimate
from janus.core.planning.routing import synthetic_routing
from janus.core.planning.sizes import ModelSizes

#: Tokens of even routing, where what the router chose was not kept.
_TOKENS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One run of one point."""

    point: Point
    #: Mean over requests, and output tokens per second from the first request to the last token.
    tpot_s: float
    ttft_s: float
    tokens_per_s: float
    #: Cores that everything else on the machine kept busy.
    others_cores: float
    runs_tpot_s: tuple[float, ...]
    #: GB/s of memory just before and after; 0 = not known.
    memory_gb_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What one cluster showed."""

    cluster: Cluster
    sizes: ModelSizes
    seen: tuple[Seen, ...]
    #: Of what the router chose, by the cluster's placement and scheduler.
    a_max: AMaxTable


def table_of(cluster: Cluster, sizes: ModelSizes, routing: npt.NDArray[np.integer[Any]]) -> AMaxTable:
    """Return a_max on ``cluster`` of tokens that chose as in ``routing``, int[L, S, K]."""
    slots = -(-sizes.experts // cluster.experts)
    return estimate(routing, num_experts=sizes.experts, slots=slots, instances=(cluster.experts,), policy="static")


def kept_tables(observed: Sequence[Observed]) -> list[dict[str, Any]]:
    """Return what a result file keeps of a_max."""
    return [
        {
            "cluster": each.cluster.name,
            "batches": list(each.a_max.batches),
            "a_max": [round(value, 4) for value in each.a_max.mean[0].tolist()],
        }
        for each in observed
    ]


def read(path: Path, sizes: Mapping[ModelName, ModelSizes], *, only: str = "") -> list[Observed]:
    """Return what an earlier run saw, by its result file; of points whose name contains ``only``.

    Points that are no longer measured are left out. Where the file does not say what the router chose, tokens are taken
    to choose evenly.
    """
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    tables = {each["cluster"]: each for each in result.get("a_max", ())}
    rows = {row["point"]: row for row in result["points"]}
    known = [point for point in POINTS if point.name in rows and only in point.name]
    return list(_observed(known, rows, tables, sizes))


def _observed(
    points: Sequence[Point],
    rows: Mapping[str, dict[str, Any]],
    tables: Mapping[str, dict[str, Any]],
    sizes: Mapping[ModelName, ModelSizes],
) -> Iterator[Observed]:
    for cluster, some in groupby(points, key=lambda point: point.cluster):
        model = sizes[cluster.model]
        if cluster.name in tables:
            table = _table(tables[cluster.name], cluster, model)
        else:
            table = table_of(cluster, model, synthetic_routing(model.experts, model.top_k, _TOKENS))
        seen = tuple(_seen(point, rows[point.name]) for point in some)
        yield Observed(cluster=cluster, sizes=model, seen=seen, a_max=table)


def _table(kept: dict[str, Any], cluster: Cluster, sizes: ModelSizes) -> AMaxTable:
    mean = np.array([kept["a_max"]], dtype=np.float64)
    nothing = np.zeros_like(mean)
    return AMaxTable(
        slots=-(-sizes.experts // cluster.experts),
        instances=(cluster.experts,),
        batches=tuple(kept["batches"]),
        mean=mean,
        error=nothing,
        bound=nothing,
    )


def _seen(point: Point, row: dict[str, Any]) -> Seen:
    return Seen(
        point=point,
        tpot_s=row["tpot_ms"] / 1e3,
        ttft_s=row["ttft_ms"] / 1e3,
        tokens_per_s=row["tokens_per_s"],
        others_cores=row["others_cores"],
        runs_tpot_s=tuple(each / 1e3 for each in row["runs_tpot_ms"]),
        memory_gb_s=row.get("memory_gb_s", 0.0),
    )
