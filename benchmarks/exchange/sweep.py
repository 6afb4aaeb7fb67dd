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
from benchmarks.exchange.ratios import ratios
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
#: Layers before a way is measured, for memory to be touched.
_WARM = 3
#: Layers between two looks at whether auto has tried every way.
_SETTLE = 24
_MOST = 300
#: Rounds of a cell, however long its layers take.
_LEAST_ROUNDS = 2
#: Cells in which a direct layer would be more than this are left out: they take minutes.
_MOST_BYTES = 70e6
#: Seconds of a direct layer over the network alone from which a cell is left out, likewise.
_MOST_LAYER_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """What to measure, and how hard."""

    #: (attention, expert) instances, spread over two nodes each.
    topologies: tuple[tuple[int, int], ...] = ((2, 2), (4, 4), (2, 8))
    hidden: tuple[int, ...] = (2048, 7168)
    tokens: tuple[int, ...] = (1, 16, 128, 512)
    #: (one-way latency in us, rate in Gbit/s)
    networks: tuple[tuple[float, float], ...] = ((10, 25), (50, 10), (200, 1))
    rounds: int = 6
    #: In so many of them instances also go on by themselves, and experts gate.
    apart_rounds: int = 3
    expert_gate_rounds: int = 2
    #: Seconds per way and round, and at least so many layers.
    seconds: float = 0.15
    least: int = 5
    #: Seconds in which auto may try the ways before it is measured, and those that a cell's rounds may take.
    settle_s: float = 5.0
    cell_s: float = 12.0


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
                        nbytes = 4 * attention * experts * tokens * hidden
                        # Half of them each way; two nodes' ports work at the same time.
                        if nbytes > _MOST_BYTES or nbytes / 4 * 8 / (rate_gbit * 1e9) > _MOST_LAYER_S:
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
                            **_Cell(bed, workers, tokens, sweep).measure(),
                        }
                        _say(cell, time.monotonic() - started)
                        yield cell


class _Cell:
    """One size in one network. What auto has learned at another size in this network stays, as in a cluster."""

    def __init__(self, bed: Testbed, workers: Workers, tokens: int, sweep: Sweep) -> None:
        self._bed = bed
        self._workers = workers
        self._tokens = tokens
        self._sweep = sweep

    def measure(self) -> dict[str, Any]:
        """Return the figures of each way, and how long auto took to try them all."""
        sweep = self._sweep
        layers: dict[str, int] = {}
        for gate, way in WAYS:
            took = self._turn(gate, way, layers=_WARM)
            layers[f"{gate}/{way}"] = min(_MOST, max(sweep.least, int(sweep.seconds * 1e6 / took["us"])))
        settled = {"settled": self._settle(together=True)}
        if sweep.apart_rounds:
            settled["settled_apart"] = self._settle(together=False)
        measured: dict[str, list[dict[str, float]]] = {}
        begun = time.monotonic()
        for number in range(sweep.rounds):
            if number >= _LEAST_ROUNDS and (time.monotonic() - begun) * (number + 1) / number > sweep.cell_s:
                break
            for gate, way in WAYS:
                if gate == "expert" and number >= sweep.expert_gate_rounds:
                    continue
                key = f"{gate}/{way}"
                found = self._turn(gate, way, layers=layers[key])
                if gate == "attention" and number < sweep.apart_rounds:
                    found["us_apart"] = self._turn(gate, way, layers=layers[key], together=False)["us_apart"]
                measured.setdefault(key, []).append(found)
        return {**settled, "ways": {way: summary(turns) for way, turns in measured.items()}}

    def _settle(self, *, together: bool) -> dict[str, Any]:
        """Let auto try every way; returns after how many layers it had, if it had in time."""
        begun, layers = time.monotonic(), 0
        while True:
            turn = self._turn("attention", "auto", layers=_SETTLE, together=together)
            layers += _SETTLE
            if turn["unsettled"] == 0:
                return {"layers": layers, "all_tried": True}
            if time.monotonic() - begun > self._sweep.settle_s:
                return {"layers": layers, "all_tried": False}

    def _turn(self, gate: str, way: str, *, layers: int, together: bool = True) -> dict[str, float]:
        """One way's turn: the median time of a layer, and counts per layer of all attention instances.

        ``together``: all instances begin each layer at the same time, and its time is from the first beginning to the
        last end. Otherwise each goes on by itself, and the time is that of its own dispatches.
        """
        workers = self._workers
        told = {"do": "run", "gate": gate, "way": way, "tokens": self._tokens, "layers": layers, "together": together}
        before = self._bed.traffic()
        with Barrier(len(workers.attention)) as barrier:
            answers = workers.ask({**told, "barrier": barrier.path}, workers.attention)
        if together:
            begun = zip(*(answer["begun"] for answer in answers.values()), strict=True)
            ended = zip(*(answer["ended"] for answer in answers.values()), strict=True)
            times = [(max(ends) - min(begins)) * 1e6 for begins, ends in zip(begun, ended, strict=True)]
        else:
            times = [us for answer in answers.values() for us in answer["us"]]
        crossed = _crossed(before, self._bed.traffic())
        total = {key: sum(answer[key] for answer in answers.values()) for key in ("frames", "hand_ins", "linger_ns")}
        ways = {key: sum(answer[key] for answer in answers.values()) for key in ("direct", "aggregated", "two_phase")}
        return {
            "us" if together else "us_apart": statistics.median(times),
            "frames_per_layer": total["frames"] / layers,
            "hand_ins_per_layer": total["hand_ins"] / layers,
            "linger_us": total["linger_ns"] / 1e3 / layers / len(answers),
            "bytes_per_layer": crossed.bytes / layers,
            "packets_per_layer": crossed.packets / layers,
            "unsettled": sum(not answer["settled"] for answer in answers.values()),
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
    """Return the median of each figure over turns, and each turn's time too."""
    keys = [key for key in turns[0] if key != "unsettled"]
    each = {key: [turn[key] for turn in turns if key in turn] for key in keys}
    result: dict[str, Any] = {key: round(statistics.median(values), 3) for key, values in each.items()}
    return result | {f"{key}_each": [round(us, 1) for us in each[key]] for key in ("us", "us_apart") if key in each}


def _say(cell: dict[str, Any], seconds: float) -> None:
    times = " ".join(f"{way.replace('attention/', '')}={found['us']:.0f}" for way, found in cell["ways"].items())
    print(
        f"{cell['attention']}x{cell['experts']} H={cell['hidden']} T={cell['tokens']} "
        f"{cell['latency_us']:g}us/{cell['rate_gbit']:g}G: {times} {ratios(cell)} "
        f"settled after {cell['settled']} ({seconds:.1f} s)",
        file=sys.stderr,
        flush=True,
    )


def described(sweep: Sweep) -> dict[str, Any]:
    """Return the sweep's settings for the record."""
    return asdict(sweep)
