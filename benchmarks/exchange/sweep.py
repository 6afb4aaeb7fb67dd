"""The sweep: every way to exchange, at every size, in every network; the ways take turns, round by round."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.exchange.barrier import Barrier
from benchmarks.exchange.cluster import Workers
from benchmarks.testbed import LinkSpec, LinkTraffic, Testbed

NODES = ("a0", "a1", "e0", "e1")
#: Which side gates, and which way: the paper's 1PC and 2PC, and what is between and above.
WAYS = (
    ("attention", "direct"),
    ("attention", "aggregated"),
    ("attention", "two-phase"),
    ("attention", "auto"),
    ("expert", "direct"),
    ("expert", "two-phase"),
)
#: Layers before a cell is measured: for memory to be touched, and of "auto" for the choice to learn.
_WARM, _WARM_AUTO, _WARM_S = 3, 48, 4.0
_MOST = 300
#: Cells in which a direct layer would be more than this are left out: they take minutes.
_MOST_BYTES = 70e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """What to measure, and how hard."""

    #: (attention, expert) instances, spread over two nodes each.
    topologies: tuple[tuple[int, int], ...] = ((2, 2), (4, 4), (2, 8), (8, 8))
    hidden: tuple[int, ...] = (2048, 7168)
    tokens: tuple[int, ...] = (1, 16, 128)
    #: (one-way latency in us, rate in Gbit/s)
    networks: tuple[tuple[float, float], ...] = ((10, 25), (50, 10), (200, 1))
    rounds: int = 3
    #: Seconds per way and round, and at least so many layers.
    seconds: float = 0.3
    least: int = 5


def run(sweep: Sweep) -> Iterator[dict[str, Any]]:
    """Yield a record per cell."""
    for attention, experts in sweep.topologies:
        for hidden in sweep.hidden:
            with (
                Testbed(NODES, LinkSpec(latency_us=50, rate_gbit=10)) as bed,
                Workers(bed, attention=attention, experts=experts, hidden=hidden) as workers,
            ):
                for latency_us, rate_gbit in sweep.networks:
                    bed.set_link(LinkSpec(latency_us=latency_us, rate_gbit=rate_gbit))
                    links = workers.ask({"do": "measure"}, workers.attention)
                    for tokens in sweep.tokens:
                        if 4 * attention * experts * tokens * hidden > _MOST_BYTES:
                            continue
                        started = time.monotonic()
                        cell = {
                            "attention": attention,
                            "experts": experts,
                            "hidden": hidden,
                            "tokens": tokens,
                            "latency_us": latency_us,
                            "rate_gbit": rate_gbit,
                            "links": next(iter(links.values())),
                            "ways": _cell(bed, workers, tokens, sweep),
                        }
                        _say(cell, time.monotonic() - started)
                        yield cell


def _cell(bed: Testbed, workers: Workers, tokens: int, sweep: Sweep) -> dict[str, Any]:
    layers: dict[str, int] = {}
    spent: dict[str, float] = {}
    for gate, way in WAYS:
        warm = _WARM
        if way == "auto":
            warm = min(_WARM_AUTO, max(_WARM, *(int(_WARM_S * 1e6 / us) for us in spent.values())))
        command = {"gate": gate, "way": way, "tokens": tokens, "fresh": True}
        took = _turn(bed, workers, command, layers=warm)
        spent[way] = took["us"]
        layers[f"{gate}/{way}"] = min(_MOST, max(sweep.least, int(sweep.seconds * 1e6 / took["us"])))
    measured: dict[str, list[dict[str, float]]] = {}
    for _ in range(sweep.rounds):
        for gate, way in WAYS:
            key = f"{gate}/{way}"
            command = {"gate": gate, "way": way, "tokens": tokens, "fresh": False}
            found = _turn(bed, workers, command, layers=layers[key])
            if gate == "attention":
                found["us_apart"] = _turn(bed, workers, command, layers=layers[key], together=False)["us_apart"]
            measured.setdefault(key, []).append(found)
    return {way: summary(turns) for way, turns in measured.items()}


def _turn(
    bed: Testbed, workers: Workers, command: dict[str, Any], *, layers: int, together: bool = True
) -> dict[str, float]:
    """One way's turn: the median time of a layer, and counts per layer of all attention instances.

    ``together``: all instances begin each layer at the same time, and its time is from the first beginning to the last
    end. Otherwise each goes on by itself, and the time is that of its own dispatches.
    """
    told = {"do": "run", "seconds": 0.0, "least": layers, "most": layers, **command}
    before = bed.traffic()
    if together:
        with Barrier(len(workers.attention)) as barrier:
            answers = workers.ask({**told, "barrier": barrier.path}, workers.attention)
        begun = zip(*(answer["begun"] for answer in answers.values()), strict=True)
        ended = zip(*(answer["ended"] for answer in answers.values()), strict=True)
        times = [(max(ends) - min(begins)) * 1e6 for begins, ends in zip(begun, ended, strict=True)]
    else:
        answers = workers.ask(told, workers.attention)
        times = [us for answer in answers.values() for us in answer["us"]]
    crossed = _crossed(before, bed.traffic())
    total = {key: sum(answer[key] for answer in answers.values()) for key in ("frames", "hand_ins", "linger_ns")}
    ways = {key: sum(answer[key] for answer in answers.values()) for key in ("direct", "aggregated", "two_phase")}
    return {
        "us" if together else "us_apart": statistics.median(times),
        "frames_per_layer": total["frames"] / layers,
        "hand_ins_per_layer": total["hand_ins"] / layers,
        "linger_us": total["linger_ns"] / 1e3 / layers / len(answers),
        "bytes_per_layer": crossed.bytes / layers,
        "packets_per_layer": crossed.packets / layers,
        **{f"share_{way}": count / layers / len(answers) for way, count in ways.items()},
    }


def _crossed(before: dict[tuple[str, str], LinkTraffic], after: dict[tuple[str, str], LinkTraffic]) -> LinkTraffic:
    """What crossed between attention and expert nodes, both ways."""
    packets = nbytes = dropped = 0
    for pair, now in after.items():
        gone = now - before[pair] if pair in before else now
        packets, nbytes, dropped = packets + gone.packets, nbytes + gone.bytes, dropped + gone.dropped
    return LinkTraffic(packets=packets, bytes=nbytes, dropped=dropped)


def summary(turns: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Return the median of each figure over turns, and of the time its spread too."""
    result: dict[str, Any] = {key: round(statistics.median(turn[key] for turn in turns), 3) for key in turns[0]}
    for key in ("us", "us_apart"):
        if key in turns[0]:
            result[f"{key}_each"] = [round(turn[key], 1) for turn in turns]
    return result


def ratios(cell: dict[str, Any], key: str = "us") -> dict[str, float]:
    """Return what a cell shows: how much faster two phases are than direct, and how near auto is to the best.

    The ways take turns, so that a round's turns have the same neighbours: ratios are taken round by round.
    """
    each = {
        way: cell["ways"][f"attention/{way}"][f"{key}_each"] for way in ("direct", "aggregated", "two-phase", "auto")
    }
    best = min(("direct", "aggregated", "two-phase"), key=lambda way: statistics.median(each[way]))
    return {
        "two_phase_speedup": round(_paired(each["direct"], each["two-phase"]), 3),
        "auto_over_best": round(_paired(each["auto"], each[best]), 3),
    }


def _paired(times: Sequence[float], others: Sequence[float]) -> float:
    return statistics.median(mine / theirs for mine, theirs in zip(times, others, strict=True))


def _say(cell: dict[str, Any], seconds: float) -> None:
    shown = ratios(cell)
    times = " ".join(f"{way.replace('attention/', '')}={found['us']:.0f}" for way, found in cell["ways"].items())
    print(
        f"{cell['attention']}x{cell['experts']} H={cell['hidden']} T={cell['tokens']} "
        f"{cell['latency_us']:g}us/{cell['rate_gbit']:g}G: {times} {shown} ({seconds:.1f} s)",
        file=sys.stderr,
        flush=True,
    )


def described(sweep: Sweep) -> dict[str, Any]:
    """Return the sweep's settings for the record."""
    return asdict(sweep)
