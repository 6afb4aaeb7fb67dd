"""One attention or expert instance of the exchange benchmark: the real exchange, and experts that compute nothing.

    python -m benchmarks.exchange.worker '{"role": "expert", "name": "expert-0", "node": "x", ...}'

Talks JSON lines with whoever started it: says {"port": N}, then answers each command with one line.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import sys
import time
from dataclasses import asdict, replace
from typing import Any, ClassVar

import numpy as np
import structlog
import torch
import uvloop
from benchmarks.exchange.barrier import Member as Party
from benchmarks.exchange.fakes import CopyBank, NoCheckpoint, random_gates

from janus.core.placement import Placement
from janus.core.scheduling import SCHEDULERS
from janus.errors import LinkError
from janus.exchange.choice import ModeChoice
from janus.exchange.probing import measure_links
from janus.exchange.remote import RemoteExchange
from janus.messages import PROTOCOL_VERSION
from janus.messages.control import Identity, Member, PlacementTable
from janus.model.config import ModelConfig
from janus.model.experts import ExpertBank
from janus.model.kernels.library import configure_threads
from janus.model.kernels.scheduling import fastest_scheduler
from janus.model.random_model import random_config
from janus.runtime import garbage
from janus.runtime.allocator import keep_memory
from janus.runtime.expert_engine import ExpertEngine
from janus.runtime.node_links import NodeLinks
from janus.transport import Link, LinkOptions, connect, listen

SECRET = b"exchange benchmark"
EXPERTS, TOP_K, LAYERS = 64, 8, 4
#: Links live through whatever a sweep does to two cores; a test that cuts them asks for less.
SILENCE_S = DISPATCH_TIMEOUT_S = 60.0


def model(hidden: int) -> ModelConfig:
    """A model of this hidden size, as far as the exchange cares."""
    return replace(
        random_config(),
        hidden_size=hidden,
        num_layers=LAYERS,
        moe_layers=tuple(range(LAYERS)),
        num_experts=EXPERTS,
        top_k=TOP_K,
    )


class Worker:
    """Runs commands; one method each."""

    make_bank: ClassVar[type[ExpertBank]] = CopyBank

    def __init__(self, given: dict[str, Any]) -> None:
        self.given = given
        self.options = LinkOptions(silence_s=given.get("silence_s", SILENCE_S), handshake_s=30.0)
        self.name, self.node, self.role = given["name"], given["node"], given["role"]
        self.config = model(given["hidden"])
        self.dtype = torch.bfloat16
        self.identity = Identity(
            protocol=PROTOCOL_VERSION,
            role=self.role,
            instance=self.name,
            node=self.node,
            incarnation=given["incarnation"],
        )
        self.links = NodeLinks(identity=self.identity, secret=SECRET)
        self.exchange: RemoteExchange | None = None
        self.engine: ExpertEngine | None = None
        self.choices: dict[str, ModeChoice] = {}
        self._sibling_up = asyncio.Event()
        self.inter: Any = None
        self.intra: Any = None

    async def start(self) -> int:
        device = torch.device("cpu")
        if self.role == "expert":
            self.engine = ExpertEngine(
                checkpoint=NoCheckpoint(),  # type: ignore[arg-type]
                config=self.config,
                dtype=self.dtype,
                device=device,
                instance=self.name,
                siblings=self.links.links,
                gates=random_gates(self.config, self.dtype),
                make_bank=self.make_bank,
            )
            handler: Any = self.engine
        else:
            handler = self.exchange = self._make(gate="attention")
        listener = await listen(
            "ucx",
            self.given["host"],
            0,
            identity=self.identity,
            secret=SECRET,
            handler_factory=lambda _: handler,
            options=self.options,
            pool=self.links.pool,
        )
        self.listener = listener
        await self.links.open(listener.port, lambda: handler, on_change=self._changed)
        return listener.port

    def _make(self, *, gate: str) -> RemoteExchange:
        return RemoteExchange(
            own=self.name,
            links={},
            siblings=self.links.links,
            scheduler=fastest_scheduler("static") if gate == "attention" else SCHEDULERS["static"],
            scheduler_name="static",
            dtype=self.dtype,
            dispatch_timeout_s=self.given.get("dispatch_timeout_s", DISPATCH_TIMEOUT_S),
            experts_gate=gate == "expert",
        )

    def _changed(self) -> None:
        self._sibling_up.set()
        if self.exchange is not None:
            self.exchange.links_changed()

    async def do_connect(self, members: list[dict[str, Any]], table: dict[str, Any]) -> dict[str, Any]:
        listed = [Member(**member) for member in members]
        placement = PlacementTable(**table)
        if self.engine is not None and self.engine.loaded_epoch != placement.epoch:
            await self.engine.load(placement)
        self.links.update(listed)
        siblings = {
            m.instance: m.incarnation
            for m in listed
            if m.role == self.role and m.node == self.node and m.instance != self.name
        }
        if self.exchange is not None:
            for member in listed:
                if member.role == "expert" and not await self._responds(
                    self.exchange.links, member.instance, member.incarnation
                ):
                    self.exchange.links[member.instance] = await connect(
                        "ucx",
                        member.host,
                        member.port,
                        identity=self.identity,
                        secret=SECRET,
                        handler=self.exchange,
                        options=self.options,
                        pool=self.links.pool,
                        timeout_s=30.0,
                    )
            self.exchange.set_sources({m.instance: m.node for m in listed if m.role == "attention"})
            self.exchange.set_placement(Placement.from_table(placement))
        async with asyncio.timeout(30):
            while not all(self._linked(self.links.links, *each) for each in siblings.items()):
                self._sibling_up.clear()
                await self._sibling_up.wait()
        garbage.settle()  # as the services do once they are up
        return {"siblings": len(self.links.links)}

    @staticmethod
    def _linked(links: dict[str, Link], name: str, incarnation: str) -> bool:
        """Whether there is a link that is up to this very process."""
        link = links.get(name)
        return link is not None and not link.closed and link.peer.incarnation == incarnation

    async def _responds(self, links: dict[str, Link], name: str, incarnation: str) -> bool:
        """Whether that link is up and answers: over a network that was cut, one seems up until its silence is long."""
        if not self._linked(links, name, incarnation):
            return False
        try:
            await links[name].round_trip(timeout_s=self.options.silence_s)
        except LinkError:
            links[name].abort("it does not answer")
            return False
        return True

    async def do_measure(self) -> dict[str, Any]:
        """Measure links as an attention instance does when it links up."""
        if self.exchange is None:
            return {}
        self.inter = await measure_links(list(self.exchange.links.values()), timeout_s=20.0)
        self.intra = await measure_links(list(self.exchange.siblings.values()), timeout_s=20.0)
        self.choices.clear()  # the network is another one
        return {
            "inter_us": _us(self.inter),
            "intra_us": _us(self.intra),
        }

    async def do_run(
        self, *, way: str, gate: str, tokens: int, layers: int, barrier: str, together: bool
    ) -> dict[str, Any]:
        """Dispatch and combine so many layers; returns when each began and ended, and what was counted.

        Args:
            way: as the option --exchange has it.
            gate: likewise.
            tokens: rows of each batch.
            layers: how many.
            barrier: where to wait for all others who are given this path, before the first layer.
            together: wait before each layer.
        """
        exchange = self.exchange
        if exchange is None:
            return {}
        # What it is like apart from the others is another thing to learn.
        key = f"{way}/{gate}/{together}"
        if key not in self.choices:
            self.choices[key] = ModeChoice(way)  # type: ignore[arg-type]
            self.choices[key].measured(inter=self.inter, intra=self.intra)
        choice = self.choices[key]
        exchange.set_gate(experts=gate == "expert")
        exchange.set_choice(choice)
        generator = torch.Generator().manual_seed(hash((self.name, tokens)) & 0xFFFF)
        x_TH = torch.randn(tokens, self.config.hidden_size, generator=generator).to(self.dtype)
        ids = [
            torch.stack([torch.randperm(EXPERTS, generator=generator)[:TOP_K] for _ in range(tokens)]).int()
            for _ in range(LAYERS)
        ]
        weights_TK = torch.rand(tokens, TOP_K, generator=generator)
        before = asdict(exchange.times)
        begun: list[float] = []
        ended: list[float] = []
        party = Party(barrier)
        with torch.inference_mode():
            for number in range(layers):
                layer = number % LAYERS
                routing = (None, None) if gate == "expert" else (ids[layer], weights_TK)
                if together or not number:
                    await party.arrive(timeout_s=120.0)
                begun.append(time.monotonic())
                await exchange.combine(exchange.dispatch(layer, x_TH, *routing))
                ended.append(time.monotonic())
        party.close()
        after = asdict(exchange.times)
        taken = [(end - begin) * 1e6 for begin, end in zip(begun, ended, strict=True)]
        counted = {name: after[name] - before[name] for name in after}
        settled = not choice.has_choice or not choice.leads or choice.settled(x_TH.nbytes)
        return {"us": taken, "begun": begun, "ended": ended, "settled": settled, **counted}


def _us(cost: Any) -> dict[str, float] | None:
    return None if cost is None else {name: value * 1e6 for name, value in asdict(cost).items()}


async def main(make: type[Worker], given: dict[str, Any]) -> None:
    worker = make(given)
    port = await worker.start()
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=1 << 24)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    print(json.dumps({"port": port}), flush=True)
    while line := await reader.readline():
        command = json.loads(line)
        answer = await getattr(worker, f"do_{command.pop('do')}")(**command)
        print(json.dumps(answer), flush=True)


def run(make: type[Worker] = Worker) -> None:
    """Be the worker that the command line describes, until whoever started it is gone."""
    ctypes.CDLL(None).prctl(1, 9)  # SIGKILL when whoever started it is gone
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    keep_memory()
    configure_threads(1, 0)
    np.random.default_rng(0)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(make, json.loads(sys.argv[1])))


if __name__ == "__main__":
    run()
