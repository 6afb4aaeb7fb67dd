"""The epoch rules of an expert instance: a slot is never computed with weights that its dispatch did not mean."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest
import torch

from janus.exchange.layout import DispatchLayout, dtype_code
from janus.exchange.local import LocalExchange
from janus.messages.control import DispatchRejected, PlacementTable
from janus.model.checkpoint import Checkpoint
from janus.model.config import ModelConfig
from janus.runtime.expert_engine import ExpertEngine
from janus.transport import InFrame, Kind
from janus.transport.frame import Header
from tests.runtime.world import HALVES, LIMIT_S, batch, table

MakeEngine = Callable[[str], ExpertEngine]


class FakeLink:
    """Takes answers; an engine posts to it as to a link."""

    closed = False

    def __init__(self) -> None:
        self.answers: asyncio.Queue[object] = asyncio.Queue(100)
        self.peer = type("Peer", (), {"instance": "attention-0"})

    def allocate(self, nbytes: int) -> InFrame:
        return InFrame(Header(kind=Kind.COMBINE), torch.zeros(nbytes, dtype=torch.uint8).numpy())

    def post(self, frame: InFrame, *, rows: int, cols: int, **fields: object) -> None:
        y_TH = torch.from_numpy(frame.payload).view(torch.float32).view(rows, cols).clone()
        self.answers.put_nowait(y_TH)

    def post_message(self, message: object, *, request_id: int) -> None:
        self.answers.put_nowait(message)

    async def answer(self) -> object:
        async with asyncio.timeout(LIMIT_S):
            return await self.answers.get()


def dispatch(
    x_TH: torch.Tensor, slots_TK: torch.Tensor, weights_TK: torch.Tensor, *, epoch: int, layer: int = 0
) -> InFrame:
    """A dispatch frame as it comes from a link."""
    rows, hidden = x_TH.shape
    layout = DispatchLayout(rows, hidden, slots_TK.shape[1], torch.float32)
    payload = torch.zeros(layout.nbytes, dtype=torch.uint8).numpy()
    x, slots, weights = layout.views(payload)
    x.copy_(x_TH)
    slots[:] = slots_TK.numpy()
    weights[:] = weights_TK.numpy()
    header = Header(
        kind=Kind.DISPATCH,
        request_id=1,
        payload_len=layout.nbytes,
        epoch=epoch,
        layer=layer,
        dtype=dtype_code(torch.float32),
        top_k=slots_TK.shape[1],
        rows=rows,
        cols=hidden,
    )
    return InFrame(header, payload)


async def ask(engine: ExpertEngine, frame: InFrame) -> object:
    link = FakeLink()
    engine.on_frame(link, frame)  # type: ignore[arg-type]
    return await link.answer()


def all_in(*experts: int, epoch: int = 1) -> PlacementTable:
    """Every expert on one instance, in this order of slots."""
    return table(list(experts), epoch=epoch)


async def test_nothing_is_served_before_a_placement(engine: MakeEngine, config: ModelConfig) -> None:
    answer = await ask(engine("expert-0"), dispatch(*batch(2, config.hidden_size), epoch=1))
    assert isinstance(answer, DispatchRejected)
    assert (answer.code, "epoch 1 is not loaded here" in answer.problem) == ("replica_missing", True)


async def test_a_dispatch_is_computed_with_the_experts_in_its_slots(
    engine: MakeEngine, config: ModelConfig, local: LocalExchange
) -> None:
    expert = engine("expert-0")
    order = [3, 1, 4, 0, 5, 2, 7, 6]
    report = await expert.load(all_in(*order))
    assert (report.epoch, report.error) == (1, "")
    x_TH, ids_TK, weights_TK = batch(5, config.hidden_size)
    slots_TK = torch.tensor([[order.index(e) for e in row] for row in ids_TK.tolist()], dtype=torch.int32)
    y_TH = await ask(expert, dispatch(x_TH, slots_TK, weights_TK, epoch=1, layer=1))
    assert isinstance(y_TH, torch.Tensor)
    expected = await local.combine(local.dispatch(1, x_TH, ids_TK, weights_TK))
    torch.testing.assert_close(y_TH, expected, atol=1e-5, rtol=1e-5)


async def test_what_waits_for_one_layer_is_computed_together_and_answered_apart(
    engine: MakeEngine, config: ModelConfig
) -> None:
    expert = engine("expert-0")
    await expert.load(all_in(*range(8)))
    batches = [batch(rows, config.hidden_size, seed=rows) for rows in (1, 5, 3)]
    alone = [await ask(expert, dispatch(*given, epoch=1)) for given in batches]
    groups = expert.times.groups
    links = [FakeLink() for _ in batches]
    for link, given in zip(links, batches, strict=True):
        expert.on_frame(link, dispatch(*given, epoch=1))  # type: ignore[arg-type]
    together = [await link.answer() for link in links]
    assert expert.times.groups == groups + 1
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(other, one, atol=1e-6, rtol=1e-6)


async def test_a_slot_that_got_another_expert_refuses_older_epochs(engine: MakeEngine, config: ModelConfig) -> None:
    expert = engine("expert-0")
    await expert.load(all_in(0, 1, 2, 3, 4, 5, 6, 7))
    await expert.load(all_in(0, 1, 2, 7, 4, 5, 6, 3, epoch=2))
    x_TH, _, weights_TK = batch(1, config.hidden_size)

    async def use(*slots: int, epoch: int) -> object:
        return await ask(expert, dispatch(x_TH, torch.tensor([slots], dtype=torch.int32), weights_TK, epoch=epoch))

    stale = await use(0, 3, 1, epoch=1)
    assert isinstance(stale, DispatchRejected)
    assert stale.code == "replica_missing"
    assert "slot 3 does not hold what epoch 1 says" in stale.problem
    assert isinstance(await use(0, 3, 1, epoch=2), torch.Tensor)
    # Slots that kept their expert serve dispatches of either epoch: make before break.
    assert isinstance(await use(0, 4, -1, epoch=1), torch.Tensor)


async def test_a_slot_that_is_being_loaded_is_never_used(
    engine: MakeEngine, config: ModelConfig, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    expert = engine("expert-0")
    await expert.load(all_in(0, 1, 2, 3, 4, 5, 6, 7))
    reading, go_on = threading.Event(), threading.Event()
    read = checkpoint.read_expert

    def slow_read(*args: object) -> object:
        reading.set()
        assert go_on.wait(LIMIT_S)
        return read(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(checkpoint, "read_expert", slow_read)
    loading = asyncio.create_task(expert.load(all_in(1, 0, 2, 3, 4, 5, 6, 7, epoch=2)), name="load")
    await asyncio.to_thread(reading.wait, LIMIT_S)
    x_TH, _, weights_TK = batch(1, config.hidden_size)
    changing, kept = torch.tensor([[0, 1, 2]], dtype=torch.int32), torch.tensor([[2, 3, 4]], dtype=torch.int32)
    assert isinstance(await ask(expert, dispatch(x_TH, kept, weights_TK, epoch=1)), torch.Tensor)
    for slots, epoch in ((changing, 1), (changing, 2), (kept, 2)):
        assert isinstance(await ask(expert, dispatch(x_TH, slots, weights_TK, epoch=epoch)), DispatchRejected)
    go_on.set()
    assert (await loading).error == ""
    assert isinstance(await ask(expert, dispatch(x_TH, changing, weights_TK, epoch=2)), torch.Tensor)
    assert isinstance(await ask(expert, dispatch(x_TH, changing, weights_TK, epoch=1)), DispatchRejected)


async def test_an_emptied_slot_is_not_used(engine: MakeEngine, config: ModelConfig) -> None:
    expert = engine("expert-0")
    await expert.load(all_in(0, 1, 2, 3, 4, 5, 6, 7))
    await expert.load(table([0, 1, 2, 3, 4, 5, 6, -1], [7, -1, -1, -1, -1, -1, -1, -1], epoch=2))
    x_TH, _, weights_TK = batch(1, config.hidden_size)
    gone = await ask(expert, dispatch(x_TH, torch.tensor([[0, 1, 7]], dtype=torch.int32), weights_TK, epoch=2))
    assert isinstance(gone, DispatchRejected)


async def test_another_number_of_slots_serves_from_its_epoch_on(engine: MakeEngine, config: ModelConfig) -> None:
    expert = engine("expert-0")
    await expert.load(HALVES)
    x_TH, _, weights_TK = batch(1, config.hidden_size)
    fifth = dispatch(x_TH, torch.tensor([[0, 1, 5]], dtype=torch.int32), weights_TK, epoch=2)
    assert isinstance(await ask(expert, fifth), DispatchRejected)
    await expert.load(all_in(*range(8), epoch=2))
    fifth = dispatch(x_TH, torch.tensor([[0, 1, 5]], dtype=torch.int32), weights_TK, epoch=2)
    assert isinstance(await ask(expert, fifth), torch.Tensor)


async def test_an_instance_that_is_not_in_the_table_holds_nothing(engine: MakeEngine) -> None:
    report = await engine("expert-9").load(HALVES)
    assert (report.replicas, report.error) == (0, "")


async def test_a_placement_that_cannot_be_loaded_is_reported_by_name(engine: MakeEngine, config: ModelConfig) -> None:
    expert = engine("expert-0")
    await expert.load(all_in(*range(8)))
    report = await expert.load(all_in(0, 1, 2, 3, 4, 5, 6, 99, epoch=2))
    assert "99" in report.error
    assert expert.loaded_epoch == 1
    # What was there before serves on.
    x_TH, _, weights_TK = batch(1, config.hidden_size)
    kept = torch.tensor([[0, 1, 2]], dtype=torch.int32)
    assert isinstance(await ask(expert, dispatch(x_TH, kept, weights_TK, epoch=1)), torch.Tensor)


async def test_a_failed_computation_is_answered_and_the_next_one_served(
    engine: MakeEngine, config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    expert = engine("expert-0")
    await expert.load(all_in(*range(8)))
    assert expert._replicas.bank is not None
    with monkeypatch.context() as broken:

        def fail(*args: object, **more: object) -> None:
            raise RuntimeError("device lost")

        for name in ("forward", "forward_at"):
            broken.setattr(expert._replicas.bank, name, fail)
        answer = await ask(expert, dispatch(*batch(2, config.hidden_size), epoch=1))
    assert isinstance(answer, DispatchRejected)
    assert answer.code == "internal"
    assert "device lost" in answer.problem
    assert isinstance(await ask(expert, dispatch(*batch(2, config.hidden_size), epoch=1)), torch.Tensor)


async def test_draining_waits_for_what_is_queued(engine: MakeEngine, config: ModelConfig) -> None:
    expert = engine("expert-0")
    await expert.load(all_in(*range(8)))
    link = FakeLink()
    expert.on_frame(link, dispatch(*batch(2, config.hidden_size), epoch=1))  # type: ignore[arg-type]
    assert await expert.drain(LIMIT_S)
    assert not link.answers.empty()
