"""Figure 12: TPOT up the ladder of exchanges - one phase or two, gate at the experts or at attention, AEBS."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from benchmarks.paper import published
from benchmarks.paper.rows import Found, Published, Row
from benchmarks.paper.systems import JANUS, World, load_of

from janus.core.exchange_cost import predict
from janus.core.exchange_routes import MODES, Mode
from janus.core.planning.baselines import XDEEPSERVE, Setting, separate
from janus.core.planning.layer_times import dispatch_shape

_EXCHANGE_JSON = Path(__file__).parents[1] / "results" / "exchange.json"
#: Attention and expert instances. The paper does not name them for this figure; its throughputs say that the whole
#: system takes 81 and 105 ms at batches of 256 and 512, and so do these, within 10 %.
ATTENTION, EXPERTS = 8, 16
#: What its plot shows.
BATCHES = (64, 128, 256, 512)
_CUTS = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of the ladder."""

    name: str
    gate: Literal["attention", "experts"]
    modes: tuple[Mode, ...]
    aebs: bool = False


STEPS = (
    Step(name="1PC + EGate", gate="experts", modes=("direct",)),
    Step(name="1PC + AGate", gate="attention", modes=("direct",)),
    Step(name="2PC + EGate", gate="experts", modes=("two-phase",)),
    Step(name="2PC + AGate", gate="attention", modes=("two-phase",)),
    Step(name="2PC + AGate + AEBS", gate="attention", modes=("two-phase",), aebs=True),
    Step(name="auto + AGate + AEBS", gate="attention", modes=MODES, aebs=True),
)
_FIRST, _EGATE, _AGATE, _AEBS, _WHOLE = STEPS[0], STEPS[2], STEPS[3], STEPS[4], STEPS[5]


def tpot_s(world: World, step: Step, batch: int, model: str = "DeepSeek-V2") -> float:
    """Return TPOT of a step of the ladder. Without AEBS, tokens are balanced over replicas."""
    setting = world.setting(JANUS if step.aebs else XDEEPSERVE, model)
    offer = separate("", setting, load_of(batch), attention=ATTENTION, experts=EXPERTS, modes=step.modes)
    total = float(offer.step.total_s)
    if step.gate == "attention":
        return total
    exchange = min(_ungated_s(setting, batch, mode) for mode in step.modes)
    return total - float(offer.step.exchange_s) + setting.model.moe_layers * exchange


def _ungated_s(setting: Setting, batch: int, mode: Mode) -> float:
    """Return one layer's exchange when every instance is sent every row, and answers for every row."""
    load = load_of(batch)
    deployment = separate("", setting, load, attention=ATTENTION, experts=EXPERTS).deployment
    shape = dispatch_shape(setting.model, setting.profile, deployment, load)
    rows = shape.batch_bytes
    shape = replace(
        shape,
        instance_bytes=rows * shape.instances,
        instance_answer_bytes=rows * shape.instances,
        node_bytes=rows * shape.nodes,
        node_answer_bytes=rows * shape.nodes,
    )
    inter, intra = setting.profile.links(members=shape.members, near=False)
    return float(predict(mode, shape, inter=inter, intra=intra))


def network_of_figure_12(world: World) -> tuple[World, float]:
    """Return ``world`` with bytes between nodes so slow that the first step takes what the paper's does at a batch of
    256; and how many times slower that is. Everything else stays.
    """
    low, high = 1.0, 256.0
    batch, wanted = next(iter(published.ONE_PHASE_EGATE_TPOT_S.items()))
    for _ in range(_CUTS):
        factor = (low * high) ** 0.5
        if tpot_s(_slower(world, factor), _FIRST, batch) < wanted:
            low = factor
        else:
            high = factor
    return _slower(world, factor), factor


def _slower(world: World, factor: float) -> World:
    inter = world.profile.inter
    profile = replace(world.profile, inter=replace(inter, byte_s=factor * inter.byte_s))
    return replace(world, profile=profile)


def figure_12(worlds: Mapping[str, World], factor: float) -> Found:
    """Climb the ladder in every world; the last one is that of ``network_of_figure_12``."""
    rows: list[Row] = []
    ladders = {}
    *_, last = worlds
    for name, world in worlds.items():
        ladder = {step.name: {batch: tpot_s(world, step, batch) for batch in BATCHES} for step in STEPS}
        ladders[name] = ladder
        rows += _rows(ladder, name, calibrated=name == last)
    rows += _measured()
    data = {
        "attention": ATTENTION,
        "experts": EXPERTS,
        "slower_bytes": round(factor, 3),
        "tpot_ms": {
            name: {step: {str(b): round(1e3 * s, 2) for b, s in of.items()} for step, of in ladder.items()}
            for name, ladder in ladders.items()
        },
    }
    return Found(number="12", title="TPOT up the ladder of exchanges", rows=rows, data=data)


def _rows(ladder: Mapping[str, Mapping[int, float]], world: str, *, calibrated: bool) -> Iterator[Row]:
    first, egate, agate = ladder[_FIRST.name], ladder[_EGATE.name], ladder[_AGATE.name]
    for batch, paper in published.ONE_PHASE_EGATE_TPOT_S.items():
        met = calibrated and batch == min(published.ONE_PHASE_EGATE_TPOT_S)
        where = f"B = {batch}; {world}"
        yield Row(
            figure="12",
            what=f"TPOT of 1PC + EGate, {where}",
            unit="ms",
            paper=1e3 * paper,
            ours=1e3 * first[batch],
            kind="calibrated" if met else "predicted",
            why="bytes between nodes made slower to meet this" if met else "",
        )
        ratios: dict[str, tuple[Published, float]] = {
            "throughput of 1PC + EGate over the whole system's": (
                published.ONE_PHASE_EGATE_THROUGHPUT[batch],
                ladder[_WHOLE.name][batch] / first[batch],
            ),
            "TPOT of 2PC + EGate over 2PC + AGate's": (published.EGATE_OVER_AGATE, egate[batch] / agate[batch]),
            "throughput with AEBS over without": (published.AEBS_ADDS, agate[batch] / ladder[_AEBS.name][batch]),
        }
        for what, (of_paper, ours) in ratios.items():
            row = Row(figure="12", what=f"{what}, {where}", unit="ratio", paper=of_paper, ours=ours, kind="predicted")
            yield row


def _measured() -> Iterator[Row]:
    """Yield the same ratios as measured with real services on an emulated network (docs/exchange.md)."""
    ladder = json.loads(_EXCHANGE_JSON.read_text())["ladder"]
    where = f"janus-tiny, 4 x 4 instances, {ladder['rate_gbit']:g} Gb/s and {ladder['latency_us']:g} us emulated"
    for batch in ("16", "64"):
        tpot = {name: each[batch]["tpot_ms"] for name, each in ladder["steps"].items()}
        for what, paper, ours in (
            ("throughput of 1PC + EGate over the whole system's", (0.30, 0.44), tpot[_WHOLE.name] / tpot[_FIRST.name]),
            (
                "TPOT of 2PC + EGate over 2PC + AGate's",
                published.EGATE_OVER_AGATE,
                tpot[_EGATE.name] / tpot[_AGATE.name],
            ),
        ):
            yield Row(
                figure="12",
                what=f"{what}, {batch} streams; CPU cluster",
                unit="ratio",
                paper=paper,
                ours=ours,
                kind="measured",
                why=where,
            )
