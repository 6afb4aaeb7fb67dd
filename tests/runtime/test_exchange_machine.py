"""Whatever happens to links, instances and placements: every dispatch ends, right or by name, and leaves nothing."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import structlog
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from janus.config.options import ExchangeName
from janus.core.placement import Placement
from janus.core.slowness import Slowness
from janus.errors import DispatchError
from janus.exchange.local import LocalExchange
from janus.exchange.receipts import Receipt
from janus.model.checkpoint import Checkpoint
from janus.model.config import ModelConfig
from janus.model.experts import ExpertBank
from janus.model.gate import Gates, load_gates
from janus.runtime.expert_engine import ExpertEngine
from janus.transport import Link
from tests.runtime.nodes import Nodes, spread, start_nodes
from tests.runtime.test_exchange_growth import left_over, links_of
from tests.runtime.test_resend import Hung
from tests.runtime.test_two_phase import ATTENTION, EXPERT_NODES
from tests.runtime.world import EXPERTS, LAYERS, batch
from tests.waiting import eventually, turns

#: Far longer than anything here takes: a dispatch that is over only when this is over, was lost.
TIMEOUT_S, LIMIT_S = 30.0, 5.0
#: A dispatch that waits for longer has nobody else to ask: those that hang must go on.
PATIENCE_S = 0.15
#: Any instance can be spared, and some pairs of them.
SLOTS = {
    "expert-0": [0, 4, 6, 2, 5],
    "expert-1": [1, 5, 0, 7, 3],
    "expert-2": [2, 6, 1, 4, 0],
    "expert-3": [3, 7, 2, 6, 1],
}
_OUTSTANDING = 12

Event: TypeAlias = tuple[Any, ...]
NAMES = st.sampled_from(sorted(ATTENTION))
EVENTS = st.one_of(
    st.tuples(st.just("dispatch"), NAMES, st.integers(1, 9), st.integers(0, LAYERS - 1)),
    st.tuples(st.just("dispatch"), NAMES, st.integers(1, 9), st.integers(0, LAYERS - 1)),
    st.tuples(st.just("dispatch"), NAMES, st.integers(1, 9), st.integers(0, LAYERS - 1)),
    st.tuples(st.just("combine"), st.integers(1, 6)),
    st.tuples(st.just("cancel"), st.integers(1, 5)),
    st.tuples(st.just("turns"), st.integers(1, 12)),
    st.tuples(st.just("abort"), st.integers(0, 99)),
    st.tuples(
        st.just("link"),
    ),
    st.tuples(st.just("load"), st.integers(0, 7)),
    st.tuples(st.just("adopt"), NAMES),
    st.tuples(st.just("hang"), st.sampled_from(sorted(SLOTS))),
    st.tuples(
        st.just("go_on"),
    ),
)


@dataclass(kw_only=True)
class World:
    """The instances, and what is in flight."""

    nodes: Nodes
    local: LocalExchange
    gates: Gates
    config: ModelConfig
    in_force: Placement
    receipts: list[tuple[str, Receipt, tuple[torch.Tensor, ...]]] = field(default_factory=list)
    hung: dict[str, Hung] = field(default_factory=dict)
    issued: int = 0
    results: int = 0
    errors: int = 0

    async def do(self, event: Event) -> None:
        await getattr(self, f"_{event[0]}")(*event[1:])

    async def _dispatch(self, name: str, rows: int, layer: int) -> None:
        if len(self.receipts) >= _OUTSTANDING:
            await self._combine(1)
        given = batch(rows, self.config.hidden_size, seed=rows)
        exchange = self.nodes.attention[name]
        if exchange.experts_gate:
            weights_TK, ids_TK = self.gates.route(self.config.moe_layers[layer], given[0])
            given = given[0], ids_TK, weights_TK
        routing = (None, None) if exchange.experts_gate else given[1:]
        try:
            receipt = exchange.dispatch(layer, given[0], *routing)
        except DispatchError as error:
            assert error.instances
            self.errors += 1
        else:
            self.receipts.append((name, receipt, given))

    async def _combine(self, count: int) -> None:
        for _ in range(min(count, len(self.receipts))):
            name, receipt, given = self.receipts.pop(0)
            step = asyncio.create_task(self.nodes.attention[name].combine(receipt), name="step")
            if self.hung and not (await asyncio.wait([step], timeout=PATIENCE_S))[0]:
                await self._go_on()
            try:
                async with asyncio.timeout(LIMIT_S):
                    result = await step
            except DispatchError as error:
                assert error.instances, error
                self.errors += 1
            else:
                expected = await self.local.combine(self.local.dispatch(receipt.layer, *given))
                torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)
                self.results += 1

    async def _cancel(self, count: int) -> None:
        """A step that is cancelled while it waits; what comes for it is dropped at once."""
        if not self.receipts:
            return
        name, receipt, _ = self.receipts.pop()
        task = asyncio.create_task(self.nodes.attention[name].combine(receipt), name="step")
        await turns(count)
        task.cancel()
        with contextlib.suppress(DispatchError, asyncio.CancelledError):
            await task

    async def _turns(self, count: int) -> None:
        await turns(count)

    async def _abort(self, number: int) -> None:
        links: list[Link] = [link for link in links_of(self.nodes) if not link.closed]
        if links:
            links[number % len(links)].abort("killed")

    async def _hang(self, name: str) -> None:
        if name not in self.hung:
            self.hung[name] = Hung(self.nodes.experts[name])

    async def _go_on(self) -> None:
        while self.hung:
            self.hung.popitem()[1].go_on()

    async def _link(self) -> None:
        await self.nodes.link_all()

    async def _load(self, missing: int) -> None:
        """A new epoch, in which instances change places; in force unless ``missing`` is one that has not got it."""
        self.issued += 1
        turn, experts = self.issued % len(SLOTS), list(SLOTS.values())
        slots = dict(zip(SLOTS, experts[turn:] + experts[:turn], strict=True))
        table = spread(slots, EXPERT_NODES, epoch=1 + self.issued)
        for number, engine in enumerate(self.nodes.experts.values()):
            if missing != number:
                await engine.load(table)
        if missing >= len(SLOTS):
            self.in_force = Placement.from_table(table)

    async def _adopt(self, name: str) -> None:
        """One attention instance hears of the epoch in force; the others of its node may not know it yet."""
        self.nodes.attention[name].set_placement(self.in_force)


@pytest.fixture(scope="module")
def checkpoint(model_dir: Path) -> Iterator[Checkpoint]:
    opened = Checkpoint.open(model_dir)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def local(checkpoint: Checkpoint) -> LocalExchange:
    config = checkpoint.config
    bank = ExpertBank(config, config.num_moe_layers, EXPERTS, torch.float32)
    for layer in range(config.num_moe_layers):
        for expert in range(EXPERTS):
            bank.load(checkpoint, layer, expert, expert)
    return LocalExchange(bank, num_layers=config.num_moe_layers)


@pytest.mark.parametrize(
    ("way", "gate"), [("two-phase", "attention"), ("aggregated", "attention"), ("two-phase", "expert")]
)
@settings(max_examples=30, deadline=None)
@given(events=st.lists(EVENTS, min_size=4, max_size=40))
def test_every_dispatch_ends_and_leaves_nothing(
    way: ExchangeName, gate: str, events: list[Event], *, checkpoint: Checkpoint, local: LocalExchange
) -> None:
    asyncio.run(live(way, gate, events, checkpoint=checkpoint, local=local))


async def live(
    way: ExchangeName, gate: str, events: list[Event], *, checkpoint: Checkpoint, local: LocalExchange
) -> None:
    all_gates = load_gates(checkpoint, checkpoint.config, torch.float32, torch.device("cpu"))
    engines: list[ExpertEngine] = []

    def make(name: str, *, siblings: dict[str, Link] | None = None, gates: bool = False) -> ExpertEngine:
        engines.append(
            ExpertEngine(
                checkpoint=checkpoint,
                config=checkpoint.config,
                dtype=torch.float32,
                device=torch.device("cpu"),
                instance=name,
                siblings=siblings,
                gates=all_gates if gates else None,
            )
        )
        return engines[-1]

    async with contextlib.AsyncExitStack() as stack:
        with structlog.testing.capture_logs():
            nodes = await start_nodes(
                stack,
                make,
                attention=ATTENTION,
                table=spread(SLOTS, EXPERT_NODES),
                exchange=way,
                experts_gate=gate == "expert",
                dispatch_timeout_s=TIMEOUT_S,
                slowness=lambda: Slowness(timeout_s=TIMEOUT_S, floor_s=0.02),
            )
            world = World(
                nodes=nodes,
                local=local,
                gates=all_gates,
                config=checkpoint.config,
                in_force=Placement.from_table(nodes.table),
            )
            for event in events:
                await world.do(event)
            await world.do(("combine", len(world.receipts)))
            await world.do(("go_on",))
            # Whatever was broken: linked anew, and with one epoch for all, it works.
            await world.do(("link",))
            await world.do(("load", len(SLOTS)))
            for name in ATTENTION:
                await world.do(("adopt", name))
            errors = world.errors
            for layer in range(LAYERS):
                for name in ATTENTION:
                    await world.do(("dispatch", name, 5, layer))
                await world.do(("combine", len(ATTENTION)))
            assert world.errors == errors
            # Answers that nobody waits for any more may still be on their way.
            with contextlib.suppress(TimeoutError):
                await eventually(lambda: not any(left_over(nodes).values()))
            assert left_over(nodes) == dict.fromkeys(left_over(nodes), 0)
            for engine in engines:
                engine.close()
