"""What is computed, in which order: routing first, then the cost model, then the figures that follow from both."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from benchmarks.paper.a_max import FAMILIES, READINGS, figure_13, figure_17, fit_column
from benchmarks.paper.calibration import bare_profile, calibrate, figure_9_points
from benchmarks.paper.choices import SLOS_S, figure_9, figure_16
from benchmarks.paper.day import COUNTED, figure_11
from benchmarks.paper.ladder import figure_12, network_of_figure_12
from benchmarks.paper.motivation import figure_1, figure_2
from benchmarks.paper.overhead import figure_15
from benchmarks.paper.routing import Effort, Routing
from benchmarks.paper.systems import MODELS, World
from benchmarks.paper.throughput import cases_of, figure_8, figure_10, slowness

_T = TypeVar("_T")
#: The worlds: the cost model fitted to figure 9; and with slower bytes between nodes, fitted to figure 12's first.
NOMINAL, SLOWER = "nominal network", "slower network"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is drawn."""

    #: For routing and a_max of figures 13 and 17, and for the tables of the systems.
    routing: Effort
    tables: Effort
    models: Sequence[str]
    readings: Sequence[int]
    families: Sequence[Routing]
    #: Of the search for the exponent.
    steps: int
    slos_s: Sequence[float]
    seed: int


def full(seed: int) -> Plan:
    """Return the plan of the result in the repository."""
    return Plan(
        routing=Effort(layers=4, tokens=8192, draws=16, seed=seed),
        tables=Effort(layers=2, tokens=4096, draws=6, seed=seed),
        models=MODELS,
        readings=READINGS,
        families=FAMILIES,
        steps=9,
        slos_s=SLOS_S,
        seed=seed,
    )


def quick(seed: int) -> Plan:
    """Return a plan that shows that everything works, and little about the figures."""
    return Plan(
        routing=Effort(layers=1, tokens=1024, draws=2, seed=seed),
        tables=Effort(layers=1, tokens=512, draws=1, seed=seed),
        models=("DeepSeek-V2", "Scaled-DS-2"),
        readings=(8,),
        families=FAMILIES[:1],
        steps=2,
        slos_s=(0.12, 0.15, 0.2),
        seed=seed,
    )


def run(plan: Plan) -> dict[str, Any]:
    """Return figures, calibration and links, as the result file has them."""
    fitted = _timed(
        "routing", lambda: fit_column(plan.routing, readings=plan.readings, families=plan.families, steps=plan.steps)
    )
    routing = fitted.best.routing
    bare = World(profile=bare_profile(), routing=routing, effort=plan.tables)
    calibration = _timed("calibration", lambda: calibrate(bare, figure_9_points()))
    testbed = replace(bare, profile=calibration.profile)
    slow, factor = network_of_figure_12(testbed)
    worlds = {NOMINAL: testbed, SLOWER: slow}
    cases = {name: _timed(f"figure 8, {name}", partial(cases_of, world, plan.models)) for name, world in worlds.items()}
    slower = {system: slowness(cases[NOMINAL], system) for system in COUNTED}
    found = [
        figure_1(bare),
        figure_2(),
        figure_8(cases),
        _timed("figure 9", lambda: figure_9(testbed, calibration, plan.slos_s)),
        figure_10(worlds),
        _timed("figure 11", lambda: figure_11(worlds, slower, seed=plan.seed)),
        figure_12(worlds, factor),
        _timed("figure 13", lambda: figure_13(routing, plan.routing)),
        figure_15(),
        _timed("figure 16", lambda: figure_16(testbed)),
        _timed("figure 17", lambda: figure_17(fitted, plan.routing)),
    ]
    profile = testbed.profile
    links = {
        name: {k: getattr(link, k) for k in ("message_s", "latency_s", "byte_s")}
        for name, link in (("intra", profile.intra), ("inter", profile.inter))
    }
    return {
        "calibration": calibration.as_json(),
        "links": links,
        "link_sources": {key: figure.source for key, figure in profile.figures.items() if key.split(".")[0] in links},
        "slower": slower,
        "figures": [each.as_json() for each in found],
    }


def _timed(what: str, compute: Callable[[], _T]) -> _T:
    """Return what ``compute`` does, and tell the terminal how long that took."""
    started = time.perf_counter()
    found = compute()
    print(f"{what}: {time.perf_counter() - started:.1f} s", file=sys.stderr, flush=True)
    return found
