"""Several attention and expert instances on several nodes, in one process: every link is a real link in memory."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch

from janus.config.options import ExchangeName
from janus.core.placement import Placement
from janus.core.scheduling import SCHEDULERS
from janus.core.slowness import Slowness
from janus.exchange.choice import ModeChoice
from janus.exchange.remote import RemoteExchange
from janus.messages.control import Identity, PlacementTable, Role
from janus.runtime.expert_engine import ExpertEngine
from janus.transport import Link, LinkHandler, TransportKind, connect, listen, shared_pool
from tests.runtime.world import LAYERS, SECRET

#: Where those transports listen that need an address.
HOSTS: dict[TransportKind, str] = {"ucx": "127.0.0.1", "tcp": "127.0.0.1"}


class MakeEngine(Protocol):
    def __call__(self, name: str, *, gates: bool = False) -> ExpertEngine: ...


@dataclass(kw_only=True)
class Nodes:
    """``attention[name]`` and ``experts[name]``; ``table`` places all 8 experts on the expert instances."""

    table: PlacementTable
    attention: dict[str, RemoteExchange] = field(default_factory=dict)
    experts: dict[str, ExpertEngine] = field(default_factory=dict)
    #: Both ends of what was dialled: the handler that each name answers with can be swapped for a gate.
    handlers: dict[str, LinkHandler] = field(default_factory=dict)

    #: Dials whatever link is down.
    link_all: Callable[[], Awaitable[None]] = field(init=False)

    async def run(self, layer: int, batches: dict[str, tuple[torch.Tensor, ...]]) -> dict[str, torch.Tensor]:
        """Dispatch every batch, then combine them; returns the sums by name."""
        receipts = {}
        for name, (x_TH, ids_TK, weights_TK) in batches.items():
            exchange = self.attention[name]
            routing = (None, None) if exchange.experts_gate else (ids_TK, weights_TK)
            receipts[name] = exchange.dispatch(layer, x_TH, *routing)
        return {name: (await self.attention[name].combine(r)).clone() for name, r in receipts.items()}


def spread(slots: dict[str, list[int]], nodes: dict[str, str], *, epoch: int = 1) -> PlacementTable:
    """The same slots in every layer, with the node of each instance."""
    per_layer = [list(experts) for experts in slots.values()]
    return PlacementTable(
        epoch=epoch,
        num_experts=8,
        instances=list(slots),
        slots=[per_layer for _ in range(LAYERS)],
        nodes=[nodes[name] for name in slots],
    )


def identity(role: Role, instance: str, node: str) -> Identity:
    from janus.messages import PROTOCOL_VERSION

    return Identity(protocol=PROTOCOL_VERSION, role=role, instance=instance, node=node, incarnation=instance)


async def start_nodes(
    stack: contextlib.AsyncExitStack,
    engine: Callable[..., ExpertEngine],
    *,
    attention: dict[str, str],
    table: PlacementTable,
    exchange: ExchangeName = "two-phase",
    experts_gate: bool = False,
    dispatch_timeout_s: float = 5.0,
    kind: TransportKind = "inproc",
    between: TransportKind = "inproc",
    slowness: Callable[[], Slowness | None] = lambda: None,
) -> Nodes:
    """Start ``attention`` ({instance: node}) and the instances of ``table``, all linked as they should be.

    ``kind``: of the links within a node; with "shm" all frames lie in this process's shared memory. ``between``: of
    those between attention and expert instances. ``slowness``: makes what says who is late.
    """
    world = Nodes(table=table)
    ports: dict[tuple[str, TransportKind], int] = {}
    kinds: tuple[TransportKind, ...] = tuple(dict.fromkeys((between, kind)))
    pool = shared_pool() if kind == "shm" else None

    async def serve(role: Role, name: str, node: str, handler: LinkHandler) -> None:
        world.handlers[name] = handler

        def factory(_: Identity) -> LinkHandler:
            return world.handlers[name]

        for each in kinds:
            listener = await listen(
                each,
                HOSTS.get(each, ""),
                0,
                identity=identity(role, name, node),
                secret=SECRET,
                handler_factory=factory,
                pool=pool,
            )
            stack.push_async_callback(listener.close)
            ports[name, each] = listener.port

    async def dial(role: Role, name: str, node: str, to: str, handler: LinkHandler, *, kind: TransportKind) -> Link:
        me = identity(role, name, node)
        return await connect(
            kind, HOSTS.get(kind, ""), ports[to, kind], identity=me, secret=SECRET, handler=handler, pool=pool
        )

    expert_nodes = dict(zip(table.instances, table.nodes, strict=True))
    siblings: dict[str, dict[str, Link]] = {name: {} for name in (*expert_nodes, *attention)}
    for name, node in expert_nodes.items():
        made = world.experts[name] = engine(name, siblings=siblings[name], gates=experts_gate)
        await made.load(table)
        await serve("expert", name, node, made)
    for name, node in attention.items():
        made_exchange = world.attention[name] = RemoteExchange(
            own=name,
            links={},
            siblings=siblings[name],
            scheduler=SCHEDULERS["aebs"],
            dtype=torch.float32,
            dispatch_timeout_s=dispatch_timeout_s,
            choice=ModeChoice(exchange),
            experts_gate=experts_gate,
            slowness=slowness(),
        )
        stack.push_async_callback(made_exchange.close)
        await serve("attention", name, node, made_exchange)

    async def link_all() -> None:
        for name, node in expert_nodes.items():
            for other, other_node in expert_nodes.items():
                if other != name and other_node == node and down(siblings[name].get(other)):
                    siblings[name][other] = await dial("expert", name, node, other, world.experts[name], kind=kind)
        for name, node in attention.items():
            own = world.attention[name]
            for to in expert_nodes:
                if down(own.links.get(to)):
                    own.links[to] = await dial("attention", name, node, to, own, kind=between)
            for other, other_node in attention.items():
                if other != name and other_node == node and down(siblings[name].get(other)):
                    siblings[name][other] = await dial("attention", name, node, other, own, kind=kind)
            own.links_changed()

    world.link_all = link_all
    await link_all()
    for exchange_of_one in world.attention.values():
        exchange_of_one.set_sources(attention)
        exchange_of_one.set_placement(Placement.from_table(table))
    return world


def down(link: Link | None) -> bool:
    return link is None or link.closed


StartNodes = Callable[..., Awaitable[Nodes]]
