"""The sweep: every way to exchange, at every size, in every network; the ways take turns, round by round."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

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
#: The first round of a cell is for the choice to learn, and for memory to be touched.
_WARM_ROUNDS = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """What to measure, and how hard."""

    #: (attention, expert) instances, spread over two nodes each.
    topologies: tuple[tuple[int, int], ...] = ((2, 2), (4, 4), (2, 8))
    hidden: tuple[int, ...] = (2048, 7168)
    tokens: tuple[int, ...] = (1, 16, 128, 512)
    #: (one-way latency in us, rate in Gbit/s)
    networks: tuple[tuple[float, float], ...] = ((10, 25), (50, 10), (200, 1))
    rounds: int = 3
    #: Seconds per way and round, and at least so many dispatches.
    seconds: float = 0.4
    least: int = 6


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
    measured: dict[str, list[dict[str, float]]] = {}
    for number in range(_WARM_ROUNDS + sweep.rounds):
        for gate, way in WAYS:
            found = _turn(bed, workers, {"gate": gate, "way": way, "tokens": tokens, "fresh": number == 0}, sweep)
            if number >= _WARM_ROUNDS:
                measured.setdefault(f"{gate}/{way}", []).append(found)
    return {way: summary(turns) for way, turns in measured.items()}


def _turn(bed: Testbed, workers: Workers, command: dict[str, Any], sweep: Sweep) -> dict[str, float]:
    """One way's turn: medians over all attention instances' dispatches, counts per layer of all of them."""
    before = bed.traffic()
    answers = workers.ask(
        {"do": "run", "seconds": sweep.seconds, "least": sweep.least, "most": 400, **command}, workers.attention
    )
    crossed = _crossed(before, bed.traffic())
    times = [us for answer in answers.values() for us in answer["us"]]
    layers = len(times) / len(answers)
    total = {key: sum(answer[key] for answer in answers.values()) for key in ("frames", "hand_ins", "linger_ns")}
    ways = {key: sum(answer[key] for answer in answers.values()) for key in ("direct", "aggregated", "two_phase")}
    return {
        "us": statistics.median(times),
        "frames_per_layer": total["frames"] / layers,
        "hand_ins_per_layer": total["hand_ins"] / layers,
        "linger_us": total["linger_ns"] / 1e3 / len(times),
        "bytes_per_layer": crossed.bytes / layers,
        "packets_per_layer": crossed.packets / layers,
        **{f"share_{way}": count / len(times) for way, count in ways.items()},
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
    result["us_each"] = [round(turn["us"], 1) for turn in turns]
    return result


def ratios(cell: dict[str, Any]) -> dict[str, float]:
    """Return what a cell shows: how much faster two phases are than direct, and how near auto is to the best.

    The ways take turns, so that a round's turns have the same neighbours: ratios are taken round by round.
    """
    ways = cell["ways"]
    direct, two_phase = ways["attention/direct"]["us_each"], ways["attention/two-phase"]["us_each"]
    aggregated, auto = ways["attention/aggregated"]["us_each"], ways["attention/auto"]["us_each"]
    return {
        "two_phase_speedup": round(statistics.median(d / t for d, t in zip(direct, two_phase, strict=True)), 3),
        "auto_over_best": round(
            min(
                statistics.median(a / each for a, each in zip(auto, best, strict=True))
                for best in (direct, two_phase, aggregated)
                if statistics.median(best)
                == min(statistics.median(direct), statistics.median(two_phase), statistics.median(aggregated))
            ),
            3,
        ),
    }


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
