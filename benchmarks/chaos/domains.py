"""The text changes under load: does the controller re-place, what is gained, and does a stream notice?

    python -m benchmarks.chaos.domains [--changes 10]

Streams of one register of English run until the placement has followed them; then they change to another register, and
back, and so on. For each change: a_max per layer before the change, after it under the old placement, and under the new
one, from the attention instance's own counts of all its dispatches; and the longest gap between two tokens of a stream
around the move, beside the gaps at all other times. Writes benchmarks/results/domains.json.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import os
import random
import shlex
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from benchmarks.serving.machine import commit, hardware

from janus.chaos.load import Running, uninterrupted
from janus.chaos.scenario import ClusterNeeds, Load
from janus.chaos.suite import with_cluster
from janus.cluster.state import RunDirectory
from janus.cluster.status import fetch_status
from janus.messages.control import Move

RESULTS = Path(__file__).parents[1] / "results" / "domains.json"
ROOT = RESULTS.parents[2]
#: Many instances with few slots: of the clusters that fit here the one on which placement matters most, by the
#: held-out routing of the bundled model. With few, or many slots, every placement has a replica where it is wanted.
NEEDS = ClusterNeeds(
    attention=1,
    experts=8,
    slots_per_instance=3,
    environment={
        # A change of text is to count within seconds here, not within minutes.
        "JANUS_CONTROLLER_ACTIVATIONS_HORIZON": "15",
        "JANUS_CONTROLLER_REBALANCE": "10",
        "JANUS_ATTENTION_ROUTING_SAMPLE_RATE": "2000",
    },
)
#: Few streams: with many, a batch of a small model activates every expert wherever it is. Sampled, so that answers do
#: not run in circles.
LOAD = Load(streams=3, prompts="presidents", max_tokens=96, temperature=0.8, seed=1)
#: Registers of English that the model knows, in text that it was not trained on.
DOMAINS = ("bible", "presidents")
_HELD_OUT = ROOT / "models" / "train" / "heldout"
_PROMPT_WORDS, _EVERY_WORDS = 24, 40
_NAME = "domains"
_MOVE_LIMIT_S, _SETTLE_S, _POLL_S = 60.0, 10.0, 0.1
#: After a change, until every stream has asked for the new text, and the counts since are of it alone.
_CHANGED_S, _LEAST_S = 5.0, 4.0
#: Around a move: from when it was issued to this long after it was in force.
_AFTER_S = 0.5


@dataclass(frozen=True, slots=True)
class Counts:
    """Sums of the attention instance at one moment."""

    at: float
    dispatches: int
    a_max: int
    move: Move | None


@dataclass(slots=True)
class Watch:
    """Polls the attention instance and the controller."""

    ops: str
    controller_ops: str
    seen: list[Counts] = field(default_factory=list)

    async def run(self) -> None:
        """Poll until cancelled."""
        async with httpx.AsyncClient(timeout=5.0, trust_env=False) as client:
            while True:
                times = (await client.get(f"{self.ops}/status")).json()["exchange_times"]
                report = await fetch_status(self.controller_ops)
                self.seen.append(Counts(time.perf_counter(), times["dispatches"], times["a_max"], report.last_move))
                await asyncio.sleep(_POLL_S)

    def mean(self, begin: float, end: float) -> float | None:
        """a_max per dispatch between two moments."""
        inside = [each for each in self.seen if begin <= each.at <= end]
        if len(inside) < 2 or inside[-1].dispatches == inside[0].dispatches:
            return None
        return (inside[-1].a_max - inside[0].a_max) / (inside[-1].dispatches - inside[0].dispatches)

    async def balanced(self, since: float) -> float | None:
        """Return when the first placement for balance after ``since`` came into force; ``None``: none did."""
        known = max((each.move.epoch for each in self.seen if each.at <= since and each.move is not None), default=0)
        # From the first look after it on: the load shares this loop, and thousands of looks take a while to go through.
        at = next((index for index, each in enumerate(self.seen) if each.at > since), len(self.seen))
        while time.perf_counter() < since + _MOVE_LIMIT_S:
            for each in self.seen[at:]:
                move = each.move
                if move is not None and (move.reason, move.outcome) == ("balance", "in force") and move.epoch > known:
                    return each.at
            at = len(self.seen)
            await asyncio.sleep(_POLL_S)
        return None


def passages(domain: str) -> tuple[str, ...]:
    """Passages from all over a register's text, to be continued."""
    words = (_HELD_OUT / f"{domain}.txt").read_text().split()
    return tuple(" ".join(words[at : at + _PROMPT_WORDS]) for at in range(0, len(words) - _PROMPT_WORDS, _EVERY_WORDS))


def gaps(running: Running) -> list[tuple[float, float]]:
    """(when, seconds) of every gap between two pieces of a stream."""
    return [
        (later, later - earlier)
        for request in running.requests
        for earlier, later in zip(request.sample.pieces_at, request.sample.pieces_at[1:], strict=False)
    ]


async def measure(changes: int) -> dict[str, Any]:
    """Change the text ``changes`` times on a cluster of its own."""
    result: dict[str, Any] = {}

    async def session(_: str) -> None:
        state = RunDirectory(_NAME).read()
        attention = next(each for each in state.instances if each.role == "attention")
        watch = Watch(f"http://127.0.0.1:{attention.ops_port}", state.controller_ops)
        running = Running(f"{state.url}/v1", LOAD, random.Random(0), passages("presidents"))
        moves: list[tuple[float, float]] = []
        found = []
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(watch.run(), name="watch")
            load = group.create_task(running.run(), name="load")
            await running.until_begun(timeout_s=_MOVE_LIMIT_S)
            await asyncio.sleep(_SETTLE_S)
            await watch.balanced(time.perf_counter() - _SETTLE_S)  # from the even deal of the start
            for number in range(changes):
                await asyncio.sleep(_SETTLE_S)
                domain = DOMAINS[number % len(DOMAINS)]
                changed = time.perf_counter()
                running.prompts = passages(domain)
                moved = await watch.balanced(changed)
                if moved is None:
                    found.append({"to": domain, "moved": False})
                    continue
                await asyncio.sleep(_SETTLE_S)
                move = next(each.move for each in watch.seen if each.at >= moved)
                assert move is not None
                issued = moved - move.seconds - _POLL_S
                moves.append((issued, moved + _AFTER_S))
                found.append(
                    {
                        "to": domain,
                        "moved": True,
                        "seconds_to_move": round(moved - changed, 2),
                        "replicas": move.replicas,
                        "bytes": move.bytes_read,
                        "a_max_before_change": watch.mean(changed - _SETTLE_S / 2, changed),
                        "a_max_old_placement": _old(watch, changed + _CHANGED_S, issued),
                        "a_max_new_placement": watch.mean(moved, moved + _SETTLE_S),
                        "expected_before": move.a_max_before,
                        "expected_after": move.a_max_after,
                    }
                )
            running.over.set()
            await load
            watching.cancel()
        result.update(_summary(found, gaps(running), moves))
        result["errors"] = sorted({each.sample.error for each in running.requests if each.sample.error})
        result["requests"] = len(running.requests)

    with uninterrupted():
        await with_cluster(NEEDS, session, model=ROOT / "models" / "janus-tiny", name=_NAME, tell=print)
    return result


def _old(watch: Watch, begin: float, end: float) -> float | None:
    """a_max of the new text under the old placement, if it was in force for long enough to tell."""
    return watch.mean(begin, end) if end - begin >= _LEAST_S else None


def _summary(found: list[dict[str, Any]], all_gaps: list[tuple[float, float]], moves: list[tuple[float, float]]) -> Any:
    inside = [[gap for at, gap in all_gaps if begin <= at <= end] for begin, end in moves]
    elsewhere = sorted(gap for at, gap in all_gaps if not any(begin <= at <= end for begin, end in moves))
    falls = [
        1 - each["a_max_new_placement"] / each["a_max_old_placement"]
        for each in found
        if each["moved"] and each["a_max_old_placement"] and each["a_max_new_placement"]
    ]
    expected = [1 - each["expected_after"] / each["expected_before"] for each in found if each["moved"]]
    usual = statistics.median(elsewhere)
    return {
        "changes": found,
        "moved": sum(each["moved"] for each in found),
        "a_max_fall_median": statistics.median(falls) if falls else None,
        "a_max_fall_expected_median": statistics.median(expected) if expected else None,
        "gap_max_by_move_ms": [round(1e3 * max(gaps), 1) for gaps in inside if gaps],
        # How much longer than usual the longest wait around any move was.
        "stall_ms": round(1e3 * (max(max(gaps) for gaps in inside if gaps) - usual), 1) if any(inside) else None,
        "gap_p50_elsewhere_ms": round(1e3 * usual, 1),
        "gap_p99_elsewhere_ms": round(1e3 * elsewhere[int(len(elsewhere) * 0.99)], 1),
        "gap_p999_elsewhere_ms": round(1e3 * elsewhere[int(len(elsewhere) * 0.999)], 1),
        "gap_max_elsewhere_ms": round(1e3 * elsewhere[-1], 1),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--changes", type=int, default=10)
    changes = parser.parse_args().changes
    result = {
        "command": shlex.join(["python", "-m", "benchmarks.chaos.domains", *sys.argv[1:]]),
        "hardware": hardware(os.cpu_count() or 1),
        "commit": commit(ROOT),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **asyncio.run(measure(changes)),
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: value for key, value in result.items() if key != "hardware"}, indent=1))


if __name__ == "__main__":
    main()
