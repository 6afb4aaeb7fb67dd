"""What loading replicas costs the dispatches that are served meanwhile, from the checkpoint and from a peer.

    python -m benchmarks.loading [--runs 8] [--write]

Two real expert engines in one process and on one loop, with a real UCX link between them: worse for dispatches than in
service, where each has its own process. While one serves dispatches of four rows, one after the other, it loads half of
its experts, or sends the other one as many, or gives them back. The worst dispatch of every run is taken; the figures
are the best and the median of these over the runs, since other processes on the machine delay dispatches too.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import os
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
import torch
import uvloop
from benchmarks.serving.machine import commit, hardware
from benchmarks.serving.worker import REPOSITORY

from janus.exchange.layout import DispatchLayout, dtype_code
from janus.messages import PROTOCOL_VERSION
from janus.messages.control import ClusterView, Identity, Member, PlacementLoaded, PlacementTable
from janus.model.checkpoint import Checkpoint
from janus.model.random_model import random_config, write_random_model
from janus.runtime.device import prepare
from janus.runtime.expert_engine import ExpertEngine
from janus.runtime.replica_links import ReplicaLinks
from janus.transport import Kind, Link, connect, listen

SECRET = b"loading benchmark"
RESULT = Path(__file__).parent / "results" / "loading.json"
EXPERTS, LAYERS, ROWS, TOP_K = 64, 2, 4, 4
#: Hidden size and width: the tiny model of the tests, and experts of 1.5 MB.
SHAPES = ((64, 32), (256, 512))
_PAUSE_S = 0.0002
_IDLE_S = 0.3


def table(epoch: int, *held: int) -> PlacementTable:
    """Instance g holds the first ``held[g]`` experts of every layer; one that is not there holds all of them."""
    per_layer = [[*range(count), *[-1] * (EXPERTS - count)] for count in (*held, EXPERTS)]
    names = [f"expert-{index}" for index in range(len(per_layer))]
    return PlacementTable(epoch=epoch, num_experts=EXPERTS, instances=names, slots=[per_layer] * LAYERS)


def identity(role: Any, name: str) -> Identity:
    """Who is who."""
    return Identity(protocol=PROTOCOL_VERSION, role=role, instance=name, node="n", incarnation=name)


class Stream:
    """Dispatches to one engine over a link in memory, one at a time; ``latencies`` in seconds."""

    def __init__(self, hidden: int) -> None:
        self.link: Link | None = None
        self._layout = DispatchLayout(ROWS, hidden, TOP_K, torch.float32)
        self._answered = asyncio.Event()
        self.latencies: list[float] = []

    def on_frame(self, link: Link, frame: Any) -> None:
        frame.release()
        self._answered.set()

    def on_message(self, link: Link, request_id: int, message: Any) -> None:
        raise RuntimeError(f"unexpected: {message}")

    def on_closed(self, link: Link, error: Any) -> None:
        pass

    async def run(self) -> None:
        """Dispatch until cancelled, always to experts of the first half."""
        number, link = 0, self.link
        assert link is not None
        while True:
            frame = link.allocate(self._layout.nbytes)
            x, slots, weights = self._layout.views(frame.payload)
            x.fill_(0.5)
            slots[:] = [(number + column) % (EXPERTS // 2) for column in range(TOP_K)]
            weights[:] = 1 / TOP_K
            number += 1
            self._answered.clear()
            started = time.perf_counter()
            link.post(
                frame,
                kind=Kind.DISPATCH,
                request_id=number,
                epoch=1,
                layer=number % LAYERS,
                dtype=dtype_code(torch.float32),
                top_k=TOP_K,
                rows=ROWS,
                cols=x.shape[1],
            )
            await self._answered.wait()
            self.latencies.append(time.perf_counter() - started)
            await asyncio.sleep(_PAUSE_S)


@dataclass
class World:
    """expert-0 serves the dispatches; expert-1 is who replicas are sent to."""

    serving: ExpertEngine
    other: ExpertEngine
    stream: Stream
    epoch: int = 1

    def next(self, *held: int) -> PlacementTable:
        self.epoch += 1
        return table(self.epoch, *held)

    async def worst_ms(self, work: Coroutine[Any, Any, PlacementLoaded | None]) -> tuple[float, PlacementLoaded | None]:
        """Return the longest dispatch while ``work`` was done, and what came of it."""
        self.stream.latencies.clear()
        streaming = asyncio.create_task(self.stream.run(), name="stream")
        try:
            result = await work
        finally:
            streaming.cancel()
            await asyncio.gather(streaming, return_exceptions=True)
        if result is not None and result.error:
            raise RuntimeError(result.error)
        return max(self.stream.latencies) * 1e3, result


async def idle() -> None:
    await asyncio.sleep(_IDLE_S)


async def give_back(engine: ExpertEngine, oldest: int) -> None:
    """Epoch 1 stays in use, all that came after it is over."""
    replicas = engine._replicas
    for number in [number for number in replicas.loaded_epochs if 1 < number < oldest]:
        del replicas._epochs[number]
    replicas.retire(1)
    await asyncio.sleep(0.1)


async def measure(checkpoint: Checkpoint, runs: int) -> dict[str, Any]:
    """Return the figures of one shape."""
    half = EXPERTS // 2
    common: dict[str, Any] = {
        "checkpoint": checkpoint,
        "config": checkpoint.config,
        "dtype": torch.float32,
        "device": torch.device("cpu"),
    }
    serving = ExpertEngine(instance="expert-0", **common)
    listener = await listen(
        "ucx", "127.0.0.1", 0, identity=identity("expert", "expert-0"), secret=SECRET, handler_factory=lambda _: serving
    )
    links = ReplicaLinks(
        identity=identity("expert", "expert-1"), secret=SECRET, transport="ucx", siblings={}, handler=lambda: other
    )
    other = ExpertEngine(instance="expert-1", reach=links, load_source="peer", **common)
    member = Member(
        role="expert",
        instance="expert-0",
        node="n",
        host="127.0.0.1",
        port=listener.port,
        incarnation="expert-0",
        state="ready",
    )
    links.update([member])
    first = await serving.load(table(1, half, 0))
    assert not first.error, first.error
    other.on_view(ClusterView(version=1, members=[member], missing=[], placement=table(1, half, 0)))
    inproc = await listen(
        "inproc", "", 0, identity=identity("expert", "expert-0"), secret=SECRET, handler_factory=lambda _: serving
    )
    stream = Stream(checkpoint.config.hidden_size)
    link = stream.link = await connect(
        "inproc", "", inproc.port, identity=identity("attention", "a"), secret=SECRET, handler=stream
    )
    world = World(serving, other, stream)
    worst: dict[str, list[float]] = {"idle": [], "load_from_disk": [], "give_back": [], "send_to_peer": []}
    reports: dict[str, list[PlacementLoaded]] = {"load_from_disk": [], "send_to_peer": []}
    for _ in range(runs):
        worst["idle"].append((await world.worst_ms(idle()))[0])
        for name, engine, held in (("load_from_disk", serving, (EXPERTS, 0)), ("send_to_peer", other, (half, half))):
            ms, report = await world.worst_ms(engine.load(world.next(*held)))
            assert report is not None
            worst[name].append(ms)
            reports[name].append(report)
            ms, _ = await world.worst_ms(give_back(engine, world.epoch + 1))
            if engine is serving:
                worst["give_back"].append(ms)
    for engine in (serving, other):
        engine.close()
    await link.close("over")
    await inproc.close()
    await listener.close()
    return {
        "worst_dispatch_ms": {
            name: {"best": round(min(values), 2), "median": round(statistics.median(values), 2)}
            for name, values in worst.items()
        },
        # While dispatches are served, which have the same cores.
        "mb_per_s": {
            name: round(statistics.median((r.bytes_read + r.bytes_from_peers) / r.seconds for r in each) / 1e6, 1)
            for name, each in reports.items()
        },
        "ms_per_replica": {
            name: round(statistics.median(r.seconds for r in each) * 1e3 / (LAYERS * half), 3)
            for name, each in reports.items()
        },
    }


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=8, help="loads of each kind")
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name} beside the other results")
    given = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    prepare("cpu", 1)
    results = []
    for hidden, width in SHAPES:
        with tempfile.TemporaryDirectory() as directory:
            config = random_config(
                num_layers=LAYERS,
                moe_layers=tuple(range(LAYERS)),
                num_experts=EXPERTS,
                top_k=TOP_K,
                hidden_size=hidden,
                moe_intermediate_size=width,
                num_heads=2,
            )
            checkpoint = Checkpoint.open(write_random_model(Path(directory) / "model", config, seed=3))
            with torch.inference_mode(), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                figures = runner.run(measure(checkpoint, given.runs))
            checkpoint.close()
        results.append({"hidden": hidden, "width": width, "replicas": LAYERS * EXPERTS // 2, **figures})
        print(json.dumps(results[-1], indent=2))
    if given.write:
        about = {
            "command": shlex.join(["python", "-m", "benchmarks.loading", *sys.argv[1:]]),
            "commit": commit(REPOSITORY),
            "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "hardware": hardware(len(os.sched_getaffinity(0))),
        }
        RESULT.write_text(json.dumps({"runs": given.runs, "shapes": results, **about}, indent=2) + "\n")


if __name__ == "__main__":
    main()
