"""Figures 9 and 16: which deployment the planner chooses, by batch and objective."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.paper import published
from benchmarks.paper.calibration import Calibration
from benchmarks.paper.rows import Found, Row
from benchmarks.paper.systems import JANUS, World, load_of

from janus.core.planning.baselines import separate
from janus.core.planning.plan import Point, Problem
from janus.core.planning.search import search

#: Objectives of figure 9's lines.
SLOS_S = tuple(ms / 1e3 for ms in range(80, 241, 5))
#: The search space that figure 16 shows.
ATTENTION, EXPERTS = (1, 2, 3, 4, 6, 8), tuple(range(6, 17))


def choose(world: World, batch: int, slo_s: float) -> Point | None:
    """Return what ``janus plan`` chooses for DeepSeek-V2 with a batch that is always full."""
    setting = world.setting(JANUS, "DeepSeek-V2")
    load = load_of(batch)
    plan = search(
        Problem(
            model=setting.model,
            profile=world.profile,
            slo_tpot_s=slo_s,
            a_max=lambda _: setting.a_max,
            batch=load.batch,
            context=load.context,
            slots=setting.slots,
            most_attention=32,
            most_experts=32,
        )
    )
    return plan.chosen


def _tpot(world: World, attention: int, experts: int, batch: int) -> float:
    setting = world.setting(JANUS, "DeepSeek-V2")
    offer = separate("janus", setting, load_of(batch), attention=attention, experts=experts)
    return float(offer.step.total_s)


def figure_9(world: World, calibration: Calibration, slos_s: Sequence[float] = SLOS_S) -> Found:
    """Report tokens per second and GPU of the paper's choices, and what is chosen by objective."""
    rows = []
    for points, words in ((published.CHOICES, "loosest"), (published.TIGHTEST, "tightest")):
        for batch, (attention, experts, tpg) in points.items():
            tpot = calibration.found[attention, experts, batch]
            rows.append(
                Row(
                    figure="9",
                    what=f"tokens/s per GPU of {attention}A{experts}E, B = {batch}, {words} objective",
                    unit="tokens/s",
                    paper=tpg,
                    ours=batch / tpot / (attention + experts),
                    kind="calibrated",
                    why="three coefficients of the cost model are fitted to these four",
                )
            )
    chosen = {str(batch): [_chosen(world, batch, slo) for slo in slos_s] for batch in published.CHOICES}
    data = {"calibration": calibration.as_json(), "choices": chosen}
    return Found(number="9", title="DeepSeek-V2: the choice by objective", rows=rows, data=data)


def _chosen(world: World, batch: int, slo_s: float) -> dict[str, Any]:
    point = choose(world, batch, slo_s)
    entry: dict[str, Any] = {"slo_ms": round(1e3 * slo_s, 1), "choice": None}
    if point is not None:
        entry |= {
            "choice": point.name,
            "devices": point.deployment.devices,
            "tpot_ms": round(1e3 * point.tpot_s, 2),
            "tpg": round(point.tokens_per_device_s, 2),
        }
    return entry


def figure_16(world: World) -> Found:
    """Choose at the paper's three batches.

    The paper's objective must be one that its three choices keep, so it is no less than the longest of their steps in
    our model; that is the one that is asked for here.
    """
    tpots = {batch: _tpot(world, a, e, batch) for batch, (a, e, _) in published.CHOICES.items()}
    least = max(tpots.values()) * (1 + 1e-9)
    rows = []
    for batch, (attention, experts, _) in published.CHOICES.items():
        for slo_s, words in ((least, "that all three of the paper's keep"), (published.TPOT_SLO_S[0], "")):
            point = choose(world, batch, slo_s)
            same = point is not None and point.name == f"{attention}A{experts}E"
            rows.append(
                Row(
                    figure="16",
                    what=f"GPUs chosen at B = {batch}, TPOT <= {1e3 * slo_s:.0f} ms {words}".rstrip(),
                    unit="GPUs",
                    paper=float(attention + experts),
                    ours=None if point is None else float(point.deployment.devices),
                    kind="predicted",
                    why=("the same, " if same else f"paper {attention}A{experts}E, ours ")
                    + ("none" if point is None else point.name),
                )
            )
    return Found(
        number="16",
        title="DeepSeek-V2: TPOT over the search space",
        rows=rows,
        data={
            "objective_ms": round(1e3 * least, 2),
            "same_choice_between_ms": {
                str(batch): _between(world, batch, a, e) for batch, (a, e, _) in published.CHOICES.items()
            },
            "space": [
                {"batch": batch, "attention": a, "experts": e, "tpot_ms": round(1e3 * _tpot(world, a, e, batch), 2)}
                for batch in published.CHOICES
                for a in ATTENTION
                for e in EXPERTS
            ],
        },
    )


def _between(world: World, batch: int, attention: int, experts: int) -> tuple[float, float | None] | None:
    """Return the objectives in ms between which a deployment is the choice; ``None``: it never is.

    It is from its own TPOT on, up to that of the quickest deployment with fewer GPUs; and never, where one with as many
    is quicker. The second is ``None`` where no deployment is smaller.
    """
    least = world.setting(JANUS, "DeepSeek-V2").least_experts
    own, gpus = _tpot(world, attention, experts, batch), attention + experts
    found: dict[bool, list[float]] = {True: [], False: []}
    for e in range(least, gpus):
        for a in range(1, gpus - e + 1):
            found[a + e == gpus].append(_tpot(world, a, e, batch))
    if min(found[True]) < own or (found[False] and min(found[False]) <= own):
        return None
    return round(1e3 * own, 1), round(1e3 * min(found[False]), 1) if found[False] else None
