"""A tiny random model and the parts of an instance around it, all in this process."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import torch

from janus.core.placement import Placement
from janus.core.scheduling import SCHEDULERS
from janus.exchange.local import LocalExchange
from janus.exchange.remote import RemoteExchange
from janus.messages import PROTOCOL_VERSION
from janus.messages.control import Identity, PlacementTable, Role
from janus.model.checkpoint import Checkpoint
from janus.model.config import ModelConfig
from janus.model.experts import ExpertBank
from janus.model.gate import Gates, load_gates
from janus.model.random_model import random_config, write_random_model
from janus.runtime.expert_engine import ExpertEngine
from janus.transport import Link, LinkHandler, connect, listen
from tests.runtime.world import EXPERTS, SECRET, Gate, Pool


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two MoE layers of eight experts, and a dense one between them."""
    config = random_config(num_layers=3, moe_layers=(0, 2), num_experts=EXPERTS, top_k=3, hidden_size=32, num_heads=2)
    return write_random_model(tmp_path_factory.mktemp("runtime") / "model", config, seed=3, std=0.3)


@pytest.fixture
def checkpoint(model_dir: Path) -> Iterator[Checkpoint]:
    opened = Checkpoint.open(model_dir)
    yield opened
    opened.close()


@pytest.fixture
def config(checkpoint: Checkpoint) -> ModelConfig:
    return checkpoint.config


def identity(role: Role, instance: str, **fields: str) -> Identity:
    values = {"node": "n", "incarnation": instance, **fields}
    return Identity(protocol=PROTOCOL_VERSION, role=role, instance=instance, **values)


@pytest.fixture
def local(checkpoint: Checkpoint, config: ModelConfig) -> LocalExchange:
    """Every expert in one bank, in this process: what any other exchange must add up to."""
    bank = ExpertBank(config, config.num_moe_layers, EXPERTS, torch.float32)
    for layer in range(config.num_moe_layers):
        for expert in range(EXPERTS):
            bank.load(checkpoint, layer, expert, expert)
    return LocalExchange(bank, num_layers=config.num_moe_layers)


@pytest.fixture
def gates(checkpoint: Checkpoint) -> Gates:
    return load_gates(checkpoint, checkpoint.config, torch.float32, torch.device("cpu"))


@pytest.fixture
async def engine(checkpoint: Checkpoint) -> AsyncIterator[Callable[[str], ExpertEngine]]:
    """Make expert engines by name."""
    made: list[ExpertEngine] = []

    def make(name: str, *, siblings: dict[str, Link] | None = None, gates: bool = False) -> ExpertEngine:
        made.append(
            ExpertEngine(
                checkpoint=checkpoint,
                config=checkpoint.config,
                dtype=torch.float32,
                device=torch.device("cpu"),
                instance=name,
                siblings=siblings,
                gates=load_gates(checkpoint, checkpoint.config, torch.float32, torch.device("cpu")) if gates else None,
            )
        )
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
async def pool(engine: Callable[[str], ExpertEngine]) -> AsyncIterator[Callable[..., Awaitable[Pool]]]:
    """Start expert instances with their halves of the experts, and an exchange that is linked to them."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(table: PlacementTable, *, dispatch_timeout_s: float = 5.0) -> Pool:
            exchange = RemoteExchange(
                own="attention-0",
                links={},
                scheduler=SCHEDULERS["static"],
                dtype=torch.float32,
                dispatch_timeout_s=dispatch_timeout_s,
            )
            pool = Pool(exchange=exchange, engines={}, gates={}, listeners={})
            for name in table.instances:
                pool.engines[name] = engine(name)
                await pool.engines[name].load(table)
                gate = pool.gates[name] = Gate(pool.engines[name])

                def factory(_: Identity, gate: LinkHandler = gate) -> LinkHandler:
                    return gate

                listener = pool.listeners[name] = await listen(
                    "inproc", "", 0, identity=identity("expert", name), secret=SECRET, handler_factory=factory
                )
                stack.push_async_callback(listener.close)
                exchange.links[name] = await connect(
                    "inproc",
                    "",
                    listener.port,
                    identity=identity("attention", "attention-0"),
                    secret=SECRET,
                    handler=exchange,
                )
            exchange.set_placement(Placement.from_table(table))
            return pool

        yield start
