"""What the tests of the runtime share besides fixtures."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import torch

from janus.errors import LinkError
from janus.exchange.remote import RemoteExchange
from janus.messages import Message
from janus.messages.control import PlacementTable
from janus.runtime.expert_engine import ExpertEngine
from janus.transport import InFrame, Link, Listener

SECRET = b"a secret of the tests"
EXPERTS, TOP_K, LAYERS = 8, 3, 2
LIMIT_S = 10.0


def table(
    *per_instance: list[int], epoch: int = 1, names: tuple[str, ...] = ("expert-0", "expert-1")
) -> PlacementTable:
    """The same slots in every layer; ``per_instance[g]`` are the experts in the slots of instance g."""
    slots = [list(experts) for experts in per_instance]
    return PlacementTable(
        epoch=epoch, num_experts=EXPERTS, instances=list(names[: len(slots)]), slots=[slots for _ in range(LAYERS)]
    )


HALVES = table([0, 1, 2, 3], [4, 5, 6, 7])


def batch(rows: int, hidden: int, *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Activations, distinct expert ids and gate weights of ``rows`` rows."""
    generator = torch.Generator().manual_seed(seed)
    x_TH = torch.randn(rows, hidden, generator=generator)
    ids_TK = torch.stack([torch.randperm(EXPERTS, generator=generator)[:TOP_K] for _ in range(rows)]).int()
    weights_TK = torch.rand(rows, TOP_K, generator=generator)
    return x_TH, ids_TK, weights_TK


class Gate:
    """In front of an expert engine: frames wait here while it is shut, and nothing is lost."""

    def __init__(self, engine: ExpertEngine) -> None:
        self.engine = engine
        self.is_open = True
        self.links: list[Link] = []
        self._waiting: list[tuple[Link, InFrame]] = []
        self.arrived = asyncio.Event()

    def open(self) -> None:
        self.is_open = True
        waiting, self._waiting = self._waiting, []
        for link, frame in waiting:
            self.engine.on_frame(link, frame)

    def shut(self) -> None:
        self.is_open = False
        self.arrived.clear()

    def on_frame(self, link: Link, frame: InFrame) -> None:
        self.links.append(link)
        self.arrived.set()
        if self.is_open:
            self.engine.on_frame(link, frame)
        else:
            self._waiting.append((link, frame))

    def on_message(self, link: Link, request_id: int, message: Message) -> None:
        self.engine.on_message(link, request_id, message)

    def on_closed(self, link: Link, error: LinkError) -> None:
        self.engine.on_closed(link, error)


@dataclass(kw_only=True)
class Pool:
    """Expert instances over in-process links, and the exchange of one attention instance."""

    exchange: RemoteExchange
    engines: dict[str, ExpertEngine]
    gates: dict[str, Gate]
    listeners: dict[str, Listener]
