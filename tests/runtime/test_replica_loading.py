"""Replicas change while dispatches of older epochs are served: made before broken, given back, rolled back."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from janus.errors import CheckpointError
from janus.exchange.local import LocalExchange
from janus.messages.control import ClusterView, DispatchRejected, PlacementTable
from janus.model.checkpoint import Checkpoint
from janus.model.config import ModelConfig
from janus.runtime.expert_engine import ExpertEngine
from tests.runtime.test_expert_engine import ask, dispatch
from tests.runtime.world import EXPERTS, LIMIT_S, batch, table
from tests.waiting import begun

MakeEngine = Callable[[str], ExpertEngine]

#: Expert 2 and 3 go from expert-0 to expert-1, 4 and 5 come: all into slots that were empty.
BEFORE = table([0, 1, 2, 3, -1, -1], [4, 5, 6, 7, -1, -1])
AFTER = table([0, 1, -1, -1, 4, 5], [-1, -1, 6, 7, 2, 3], epoch=2)


def view(oldest_epoch: int, placement: PlacementTable | None = None) -> ClusterView:
    return ClusterView(version=1, members=[], missing=[], placement=placement, oldest_epoch=oldest_epoch)


async def compute(engine: ExpertEngine, given_slots: dict[int, int], *, epoch: int) -> object:
    """Dispatch one row to ``{slot: expert}``."""
    hidden = engine._config.hidden_size
    x_TH, _, _ = batch(1, hidden)
    slots_TK = torch.tensor([list(given_slots)], dtype=torch.int32)
    return await ask(engine, dispatch(x_TH, slots_TK, torch.ones(1, len(given_slots)), epoch=epoch))


async def check(engine: ExpertEngine, local: LocalExchange, given_slots: dict[int, int], *, epoch: int) -> None:
    """The answer is that of exactly these experts."""
    y_TH = await compute(engine, given_slots, epoch=epoch)
    assert isinstance(y_TH, torch.Tensor), y_TH
    x_TH, _, _ = batch(1, engine._config.hidden_size)
    ids_TK = torch.tensor([list(given_slots.values())], dtype=torch.int32)
    expected = await local.combine(local.dispatch(0, x_TH, ids_TK, torch.ones(1, len(given_slots))))
    torch.testing.assert_close(y_TH, expected, atol=1e-5, rtol=1e-5)


async def refused(engine: ExpertEngine, slot: int, *, epoch: int) -> None:
    answer = await compute(engine, {slot: 0}, epoch=epoch)
    assert isinstance(answer, DispatchRejected)
    assert answer.code == "replica_missing"


class SlowReads:
    """Reads of experts wait for ``go_on``."""

    def __init__(self, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reading, self.go_on = threading.Event(), threading.Event()
        self._read = checkpoint.read_expert
        monkeypatch.setattr(checkpoint, "read_expert", self)

    def __call__(self, *args: object) -> object:
        self.reading.set()
        assert self.go_on.wait(LIMIT_S)
        return self._read(*args)  # type: ignore[arg-type]


async def test_an_epoch_is_served_while_the_next_is_loaded_and_until_it_is_retired(
    engine: MakeEngine, local: LocalExchange, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    expert = engine("expert-0")
    await expert.load(BEFORE)
    old, new = {0: 0, 1: 1, 2: 2, 3: 3}, {0: 0, 1: 1, 4: 4, 5: 5}
    slow = SlowReads(checkpoint, monkeypatch)
    loading = asyncio.create_task(expert.load(AFTER), name="load")
    await asyncio.to_thread(slow.reading.wait, LIMIT_S)
    await check(expert, local, old, epoch=1)
    await refused(expert, 4, epoch=2)
    slow.go_on.set()
    report = await loading
    assert (report.error, report.replicas) == ("", 8)
    await check(expert, local, old, epoch=1)
    await check(expert, local, new, epoch=2)
    # What the new epoch leaves empty is none of its slots, though the expert is still in it.
    await refused(expert, 2, epoch=2)
    expert.on_view(view(oldest_epoch=2))
    await refused(expert, 0, epoch=1)
    await check(expert, local, new, epoch=2)


async def test_only_what_is_new_is_read(engine: MakeEngine, config: ModelConfig) -> None:
    expert = engine("expert-0")
    per_expert = 3 * config.hidden_size * config.moe_intermediate_size * 4
    assert (await expert.load(BEFORE)).bytes_read == 8 * per_expert
    assert (await expert.load(AFTER)).bytes_read == 4 * per_expert
    assert (await expert.load(AFTER)).bytes_read == 0


@pytest.mark.parametrize("slots", [8, 4], ids=["more", "fewer"])
async def test_another_number_of_slots_keeps_what_is_there(
    slots: int, engine: MakeEngine, local: LocalExchange, config: ModelConfig
) -> None:
    expert = engine("expert-0")
    await expert.load(BEFORE)
    others = [4, 5, 6, 7]
    changed = table([0, 1, 2, 3, *others[: slots - 4]], [*others, 0, 1, 2, 3][:slots], epoch=2)
    report = await expert.load(changed)
    per_expert = 3 * config.hidden_size * config.moe_intermediate_size * 4
    assert (report.error, report.bytes_read) == ("", (slots - 4) * 2 * per_expert)
    await check(expert, local, {0: 0, 3: 3}, epoch=1)
    await check(expert, local, {slot: slot for slot in range(slots)}, epoch=2)
    await refused(expert, slots, epoch=2)
    await refused(expert, 4, epoch=1)


async def test_a_slot_that_is_used_again_is_right_for_its_epoch_only(engine: MakeEngine, local: LocalExchange) -> None:
    expert = engine("expert-0")
    await expert.load(BEFORE)
    await expert.load(AFTER)
    await expert.load(table([0, 1, 7, 6, 4, 5], [2, 3, 6, 7, -1, -1], epoch=3))
    await refused(expert, 2, epoch=1)
    await check(expert, local, {0: 0, 1: 1}, epoch=1)
    await check(expert, local, {2: 7, 3: 6, 4: 4}, epoch=3)
    await check(expert, local, {4: 4}, epoch=2)


async def test_retiring_gives_back_and_keeps_what_a_load_in_progress_needs(
    engine: MakeEngine, local: LocalExchange, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    expert = engine("expert-0")
    await expert.load(BEFORE)
    await expert.load(AFTER)
    bank = expert._replicas.bank
    assert bank is not None
    assert bank.resident_nbytes == 12 * bank.expert_nbytes
    slow = SlowReads(checkpoint, monkeypatch)
    # Slot 2 holds expert 2 for epoch 1 alone, and epoch 3 wants it there again.
    loading = asyncio.create_task(expert.load(table([0, 1, 2, -1, 4, 7], [6, 5, 3, -1, -1, -1], epoch=3)), name="load")
    await asyncio.to_thread(slow.reading.wait, LIMIT_S)
    expert.on_view(view(oldest_epoch=2))
    slow.go_on.set()
    assert (await loading).error == ""
    await check(expert, local, {0: 0, 1: 1, 2: 2, 4: 4, 5: 7}, epoch=3)
    assert bank.resident_nbytes == 10 * bank.expert_nbytes
    expert.on_view(view(oldest_epoch=4))
    assert bank.resident_nbytes == 0


async def test_what_has_just_been_loaded_is_not_given_back(
    engine: MakeEngine, local: LocalExchange, monkeypatch: pytest.MonkeyPatch
) -> None:
    expert = engine("expert-0")
    await expert.load(BEFORE)

    async def retire() -> None:
        expert.on_view(view(oldest_epoch=2))

    monkeypatch.setattr(expert._sources, "rest", retire)  # while links are closed, before the report
    assert (await expert.load(AFTER)).error == ""
    await check(expert, local, {0: 0, 1: 1, 4: 4, 5: 5}, epoch=2)


async def test_a_dispatch_that_waits_is_not_computed_once_its_epoch_is_retired(engine: MakeEngine) -> None:
    expert = engine("expert-0")
    await expert.load(BEFORE)
    await expert.load(AFTER)
    # It is queued, and computed in the next turn of the loop.
    answer = await begun(compute(expert, {2: 2}, epoch=1), name="dispatch")
    expert.on_view(view(oldest_epoch=2))
    rejected = await answer
    assert isinstance(rejected, DispatchRejected)
    assert rejected.code == "replica_missing"


async def test_a_failed_load_is_rolled_back_and_the_epoch_in_force_goes_on(
    engine: MakeEngine, local: LocalExchange, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    expert = engine("expert-0")
    await expert.load(BEFORE)
    bank = expert._replicas.bank
    assert bank is not None
    held = [list(experts) for experts in bank.slot_expert]
    read = checkpoint.read_expert

    def fail(layer: int, number: int, dtype: torch.dtype) -> object:
        if number == 5:
            raise CheckpointError("model.safetensors", "ends inside expert 5")
        return read(layer, number, dtype)

    with monkeypatch.context() as broken:
        broken.setattr(checkpoint, "read_expert", fail)
        report = await expert.load(AFTER)
    assert "ends inside expert 5" in report.error
    assert report.replicas == 0
    assert bank.slot_expert == held
    assert expert.loaded_epoch == 1
    await check(expert, local, {0: 0, 1: 1, 2: 2, 3: 3}, epoch=1)
    await refused(expert, 0, epoch=2)
    again = await expert.load(table([0, 1, -1, -1, 4, 5], [-1, -1, 6, 7, 2, 3], epoch=3))
    assert again.error == ""
    await check(expert, local, {0: 0, 4: 4, 5: 5}, epoch=3)


async def test_whatever_goes_wrong_is_rolled_back_and_reported(
    engine: MakeEngine, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    expert = engine("expert-0")

    def fail(*_: object) -> object:
        raise MemoryError

    monkeypatch.setattr(checkpoint, "read_expert", fail)
    report = await expert.load(BEFORE)
    assert report.error == "MemoryError"
    assert expert.loaded_epoch == 0
    # A table that makes no sense, and one that gives way to it.
    broken = PlacementTable(epoch=3, num_experts=EXPERTS, instances=["expert-0"], slots=[[]])
    expert.expect(broken)
    assert (await expert.load(AFTER)).error
    assert (await expert.load(broken)).error
    assert expert.loaded_epoch == 0


async def test_a_cancelled_load_leaves_nothing_behind(
    engine: MakeEngine, local: LocalExchange, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    expert = engine("expert-0")
    await expert.load(BEFORE)
    with monkeypatch.context() as patched:
        slow = SlowReads(checkpoint, patched)
        loading = asyncio.create_task(expert.load(AFTER), name="load")
        await asyncio.to_thread(slow.reading.wait, LIMIT_S)
        loading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loading
        slow.go_on.set()
    # The read that was under way ends in its thread; what comes next is written after it.
    report = await expert.load(table([0, 1, 2, 3, 6, 7], [4, 5, 6, 7, -1, -1], epoch=3))
    assert report.error == ""
    await check(expert, local, {0: 0, 2: 2, 4: 6, 5: 7}, epoch=3)


async def test_a_load_gives_way_to_a_newer_one_which_keeps_what_it_can_use(
    engine: MakeEngine, local: LocalExchange, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    expert = engine("expert-0")
    await expert.load(BEFORE)
    per_expert = 3 * checkpoint.config.hidden_size * checkpoint.config.moe_intermediate_size * 4
    slow = SlowReads(checkpoint, monkeypatch)
    loading = asyncio.create_task(expert.load(AFTER), name="load")  # expert 4 comes into slot 4 first
    await asyncio.to_thread(slow.reading.wait, LIMIT_S)
    newer = table([0, 1, -1, -1, 4, 6], [5, -1, -1, 7, 2, 3], epoch=3)
    expert.expect(newer)
    slow.go_on.set()
    given_way = await loading
    assert (given_way.error, given_way.bytes_read) == ("superseded by epoch 3", per_expert)
    report = await expert.load(newer)
    # Slot 5 in both layers, and slot 4 in the layer that the older one did not come to.
    assert (report.error, report.bytes_read) == ("", 3 * per_expert)
    await check(expert, local, {0: 0, 3: 3}, epoch=1)
    await check(expert, local, {4: 4, 5: 6}, epoch=3)
    await refused(expert, 4, epoch=2)


async def test_what_a_load_that_gave_way_left_is_given_back_at_last(
    engine: MakeEngine, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    expert = engine("expert-0")
    await expert.load(BEFORE)
    bank = expert._replicas.bank
    assert bank is not None
    slow = SlowReads(checkpoint, monkeypatch)
    loading = asyncio.create_task(expert.load(AFTER), name="load")
    await asyncio.to_thread(slow.reading.wait, LIMIT_S)
    expert.expect(table([0, 1, 2, 3, 4, -1], [5, 6, 7, -1, -1, -1], epoch=3))
    slow.go_on.set()
    await loading
    assert bank.resident_nbytes == 9 * bank.expert_nbytes
    expert.on_view(view(oldest_epoch=1))
    assert bank.resident_nbytes == 8 * bank.expert_nbytes


async def test_epochs_that_nobody_retires_are_bounded(engine: MakeEngine, local: LocalExchange) -> None:
    expert = engine("expert-0")
    for epoch in range(1, 40):
        await expert.load(table([0, 1, 2, 3], [4, 5, 6, 7], epoch=epoch))
    assert len(expert._replicas._epochs) < 20
    await refused(expert, 0, epoch=1)
    await check(expert, local, {0: 0}, epoch=39)


class _Model:
    """What a dispatch may be answered with: the expert that its epoch says, or a rejection."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.tables: dict[int, list[int]] = {}
        self.epoch = 0

    def next_table(self, slots: int) -> PlacementTable:
        self.epoch += 1
        own = self.rng.sample(range(EXPERTS), self.rng.randint(0, min(slots, EXPERTS)))
        own = [*own, *[-1] * (slots - len(own))]
        self.rng.shuffle(own)
        self.tables[self.epoch] = own
        width = max(slots, EXPERTS)
        return table([*own, *[-1] * (width - slots)], [*range(EXPERTS), *[-1] * (width - EXPERTS)], epoch=self.epoch)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), steps=st.lists(st.sampled_from(["load", "fail", "retire", "ask"]), max_size=16))
def test_no_dispatch_ever_gets_another_expert_than_its_epoch_says(
    model_dir: Path, local: LocalExchange, seed: int, steps: list[str]
) -> None:
    """Tables that follow no rule at all, failures and retirements in any order."""
    rng = random.Random(seed)

    async def run() -> None:
        checkpoint = Checkpoint.open(model_dir)
        read = checkpoint.read_expert
        expert = ExpertEngine(
            checkpoint=checkpoint,
            config=checkpoint.config,
            dtype=torch.float32,
            device=torch.device("cpu"),
            instance="expert-0",
        )
        model, oldest, newest = _Model(rng), 0, 0
        for step in ["load", *steps, "ask"]:
            if step == "retire":
                oldest = max(oldest, rng.randint(1, model.epoch))
                expert.on_view(view(oldest_epoch=oldest))
            elif step in ("load", "fail"):
                reads = iter(range(100))
                fail_at = rng.randint(0, 4) if step == "fail" else -1

                def maybe(*args: object, at: int = fail_at, reads: object = reads) -> object:
                    if next(reads) == at:  # type: ignore[call-overload]
                        raise CheckpointError("model.safetensors", "is gone")
                    return read(*args)  # type: ignore[arg-type]

                checkpoint.read_expert = maybe  # type: ignore[method-assign,assignment]
                report = await expert.load(model.next_table(rng.randint(4, 7)))
                newest = newest if report.error else report.epoch
            for epoch, own in model.tables.items():
                slot = rng.randrange(len(own))
                if own[slot] < 0 or epoch < oldest:
                    await refused(expert, slot, epoch=epoch)
                    continue
                # Of the newest nothing can have been taken away; of others, all that is not rejected is right.
                must = epoch == newest == model.epoch
                if must or isinstance(await compute(expert, {slot: own[slot]}, epoch=epoch), torch.Tensor):
                    await check(expert, local, {slot: own[slot]}, epoch=epoch)
        expert.close()
        checkpoint.close()

    asyncio.run(run())
