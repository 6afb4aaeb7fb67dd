"""Figures 8 and 10: tokens per second and GPU, and TPOT, beside the modelled baselines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from benchmarks.paper import published
from benchmarks.paper.rows import Found, Row
from benchmarks.paper.systems import JANUS, MODELS, MOST, SYSTEMS, World, load_of

from janus.core.planning.baselines import (
    MEGASCALE,
    Offer,
    balanced_attention,
    separate,
)

#: The paper's names of the baselines.
PAPERS = {
    "monolithic": "monolithic",
    "one-degree": "monolithic",
    "megascale": "megascale-infer",
    "xdeepserve": "xdeepserve",
}
#: What they are, in a table.
WORDS = {
    "monolithic": "monolithic, any tensor parallelism up to 8",
    "one-degree": "monolithic, one degree of parallelism",
    "megascale": "MegaScale-Infer",
    "xdeepserve": "xDeepServe",
}
#: Figure 10's expert instances, and batches.
EXPERTS_10 = 16
BATCHES_10 = (16, 32, 64, 128, 256, 512)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Choices:
    """What a system could run a load on: offers, their TPOT in seconds, and their tokens per second and device."""

    offers: Sequence[Offer]
    tpot_s: npt.NDArray[np.float64]
    tpg: npt.NDArray[np.float64]

    def best(self, slo_s: float, slower: float = 1.0) -> int | None:
        """Return the number of the offer with the most tokens per second and device that keeps the objective."""
        kept = np.flatnonzero(self.tpot_s * slower <= slo_s)
        return int(kept[self.tpg[kept].argmax()]) if len(kept) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Everything that the systems could run one model and batch on."""

    model: str
    batch: int
    choices: Mapping[str, Choices]

    def best(self, system: str, slo_s: float) -> Offer | None:
        """Return the best offer of a system."""
        choices = self.choices[system]
        best = choices.best(slo_s)
        return None if best is None else choices.offers[best]

    def gain(self, system: str, slo_s: float, slower: float = 1.0) -> float | None:
        """Return Janus's tokens per second and device over another system's, each at its best.

        ``slower``: how many times as long the system's steps take as they are predicted to.
        """
        janus, other = self.choices["janus"], self.choices[system]
        ours, theirs = janus.best(slo_s), other.best(slo_s, slower)
        if ours is None or theirs is None:
            return None
        return float(slower * janus.tpg[ours] / other.tpg[theirs])

    def gain_over_size(self, devices: int, slo_s: float) -> float | None:
        """Return the same over a monolithic deployment of that size; ``None``: it does not keep the objective."""
        janus, other = self.choices["janus"], self.choices["monolithic"]
        ours = janus.best(slo_s)
        kept = [n for n, each in enumerate(other.offers) if each.devices == devices and other.tpot_s[n] <= slo_s]
        return float(janus.tpg[ours] / other.tpg[kept[0]]) if ours is not None and kept else None

    def as_json(self, slo_s: float) -> dict[str, Any]:
        """Return it as the result file has it."""
        best = {name: self.best(name, slo_s) for name in self.choices}
        systems = {name: None if offer is None else describe(offer, self.batch) for name, offer in best.items()}
        return {"model": self.model, "batch": self.batch, "slo_ms": round(1e3 * slo_s), **systems}


def describe(offer: Offer, batch: float) -> dict[str, Any]:
    """Return an offer as the result file has it."""
    d = offer.deployment
    width = f"x{d.tensor_parallel}" if d.tensor_parallel > 1 else ""
    return {
        "deployment": f"{d.attention}{width}A{d.experts}E",
        "devices": offer.devices,
        "tpot_ms": round(1e3 * float(offer.step.total_s), 2),
        "a_max": round(float(offer.step.a_max), 2),
        "exchange": str(offer.step.exchange),
        "exchange_ms": round(1e3 * float(offer.step.exchange_s), 2),
        "tpg": round(float(offer.tokens_per_device_s(load_of(batch))), 2),
    }


def cases_of(
    world: World, models: Sequence[str] = MODELS, batches: Sequence[int] = published.BATCHES, most: int = MOST
) -> list[Case]:
    """Return figure 8's models and batches, with what runs of what every system could choose."""
    found = []
    for model in models:
        settings = {name: world.setting(system, model) for name, system in SYSTEMS.items()}
        for batch in batches:
            load = load_of(batch)
            choices = {
                name: _choices(system.offers(settings[name], load, most), batch) for name, system in SYSTEMS.items()
            }
            found.append(Case(model=model, batch=batch, choices=choices))
    return found


def _choices(offers: Iterable[Offer], batch: int) -> Choices:
    kept = [each for each in offers if not each.misfit]
    return Choices(
        offers=kept,
        tpot_s=np.array([float(each.step.total_s) for each in kept]),
        tpg=np.array([float(each.tokens_per_device_s(load_of(batch))) for each in kept]),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """Janus's tokens per second and GPU over another system's, and where."""

    ratio: float
    where: str


def largest_gain(cases: Sequence[Case], system: str, slower: float = 1.0) -> Gain | None:
    """Return the largest gain over a system of all cases and objectives in which both keep the objective."""
    gains = [
        Gain(ratio=gain, where=f"{case.model}, B = {case.batch}, {1e3 * slo_s:.0f} ms")
        for case in cases
        for slo_s in published.TPOT_SLO_S
        if (gain := case.gain(system, slo_s, slower)) is not None
    ]
    return max(gains, key=lambda each: each.ratio, default=None)


def slowness(cases: Sequence[Case], system: str) -> float:
    """Return how many times as long a baseline's steps must take as ours say for its largest gain to be the paper's.

    What a real system does beside reading weights, computing and sending is not in the model; this is a measure of it.
    """
    wanted = published.GAIN[PAPERS[system]]
    for factor in np.arange(1.0, 4.0, 0.01):
        gain = largest_gain(cases, system, float(factor))
        if gain is None or gain.ratio >= wanted:
            break
    return round(float(factor), 2)


def figure_8(worlds: Mapping[str, Sequence[Case]]) -> Found:
    """Report the largest gains in every world; those over deployments of a fixed size in the first."""
    gains_of = {name: {system: largest_gain(each, system) for system in PAPERS} for name, each in worlds.items()}
    rows = [
        Row(
            figure="8",
            what=f"largest gain in tokens/s per GPU over {WORDS[system]}; {name}",
            unit="ratio",
            paper=published.GAIN[PAPERS[system]],
            ours=None if gain is None else gain.ratio,
            kind="predicted",
            why="" if gain is None else gain.where,
        )
        for name, gains in gains_of.items()
        for system, gain in gains.items()
    ]
    first = next(iter(worlds.values()))
    for devices in (32, 64):
        of_size = [
            ratio
            for case in first
            for slo_s in published.TPOT_SLO_S
            if (ratio := case.gain_over_size(devices, slo_s)) is not None
        ]
        rows.append(
            Row(
                figure="8",
                what=f"largest gain over a monolithic deployment of {devices} GPUs",
                unit="ratio",
                paper=published.GAIN["monolithic"],
                ours=max(of_size, default=None),
                kind="predicted",
                why="what a deployment that cannot shrink costs at low load",
            )
        )
    data = {
        "largest_gains": {
            name: {system: None if gain is None else asdict(gain) for system, gain in gains.items()}
            for name, gains in gains_of.items()
        },
        "cases": {
            name: [case.as_json(slo_s) for case in each for slo_s in published.TPOT_SLO_S]
            for name, each in worlds.items()
        },
    }
    return Found(number="8", title="Tokens per second and GPU under a TPOT objective", rows=rows, data=data)


def figure_10(worlds: Mapping[str, World], model: str = "Scaled-DS-2") -> Found:
    """Compare TPOT on 16 expert instances, with as many attention instances as MegaScale-Infer balances."""
    lines = {name: _tpots(world, model) for name, world in worlds.items()}
    rows = []
    for name, found in lines.items():
        ratios = [each["janus_ms"] / each["megascale_ms"] for each in found]
        for words, ratio in (("lowest", min(ratios)), ("highest", max(ratios))):
            rows.append(
                Row(
                    figure="10",
                    what=f"TPOT over MegaScale-Infer's, {words} of all batch sizes; {name}",
                    unit="ratio",
                    paper=(1 + published.TPOT_CHANGE[0], 1 + published.TPOT_CHANGE[1]),
                    ours=ratio,
                    kind="predicted",
                    why="a_max and two-phase exchange are all that differs",
                )
            )
    data = {"model": model, "experts": EXPERTS_10, "lines": lines}
    return Found(number="10", title="TPOT of Scaled-DS-2 on 16 expert instances", rows=rows, data=data)


def _tpots(world: World, model: str) -> list[dict[str, Any]]:
    ours, theirs = world.setting(JANUS, model), world.setting(MEGASCALE, model)
    found = []
    for batch in BATCHES_10:
        load = load_of(batch)
        balanced = balanced_attention(theirs, load, experts=EXPERTS_10, most=MOST)
        if balanced is None:
            continue
        attention = balanced.deployment.attention
        janus = separate("janus", ours, load, attention=attention, experts=EXPERTS_10)
        found.append(
            {
                "batch": batch,
                "attention": attention,
                "janus_ms": round(1e3 * float(janus.step.total_s), 3),
                "megascale_ms": round(1e3 * float(balanced.step.total_s), 3),
                "a_max": [round(float(each.step.a_max), 2) for each in (janus, balanced)],
                "exchange_ms": [round(1e3 * float(each.step.exchange_s), 2) for each in (janus, balanced)],
            }
        )
    return found
