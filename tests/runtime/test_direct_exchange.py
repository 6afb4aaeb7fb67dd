"""Dispatch and combine over links: sums as if the experts were here, whatever the timing; losses by name."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
import torch

from janus.core.placement import Placement
from janus.errors import InstanceLost, ReplicaMissing
from janus.exchange.local import LocalExchange
from janus.model.config import ModelConfig
from tests.runtime.world import HALVES, LIMIT_S, Pool, batch, table
from tests.waiting import begun, eventually

StartPool = Callable[..., Awaitable[Pool]]


async def run(pool: Pool, layer: int, *given: torch.Tensor) -> torch.Tensor:
    async with asyncio.timeout(LIMIT_S):
        return (await pool.exchange.combine(pool.exchange.dispatch(layer, *given))).clone()


@pytest.mark.parametrize("rows", [1, 2, 7, 64])
async def test_the_sum_is_that_of_experts_in_one_place(
    rows: int, pool: StartPool, local: LocalExchange, config: ModelConfig
) -> None:
    running = await pool(HALVES)
    for layer in range(2):
        given = batch(rows, config.hidden_size, seed=rows)
        expected = await local.combine(local.dispatch(layer, *given))
        torch.testing.assert_close(await run(running, layer, *given), expected, atol=1e-5, rtol=1e-5)


async def test_replicas_and_empty_slots_change_nothing(
    pool: StartPool, local: LocalExchange, config: ModelConfig
) -> None:
    running = await pool(table([0, 1, 2, 3, 7, -1], [-1, 4, 5, 6, 7, 0]))
    given = batch(9, config.hidden_size)
    expected = await local.combine(local.dispatch(1, *given))
    torch.testing.assert_close(await run(running, 1, *given), expected, atol=1e-5, rtol=1e-5)


async def test_the_order_of_answers_changes_no_bit(pool: StartPool, config: ModelConfig) -> None:
    running = await pool(HALVES)
    given = batch(16, config.hidden_size)
    sums = []
    for late in ("expert-0", "expert-1"):
        running.gates[late].shut()
        receipt = running.exchange.dispatch(0, *given)
        async with asyncio.timeout(LIMIT_S):
            # The early answer tells nobody but the receipt.
            await eventually(lambda receipt=receipt: receipt.outstanding <= 1)
            assert not receipt.done.done()
            running.gates[late].open()
            sums.append((await running.exchange.combine(receipt)).clone())
    assert torch.equal(*sums)


async def test_several_dispatches_may_be_on_their_way(pool: StartPool, config: ModelConfig) -> None:
    running = await pool(HALVES)
    batches = [batch(3, config.hidden_size, seed=seed) for seed in range(6)]
    one_by_one = [await run(running, 0, *given) for given in batches]
    receipts = [running.exchange.dispatch(0, *given) for given in batches]
    async with asyncio.timeout(LIMIT_S):
        together = [(await running.exchange.combine(receipt)).clone() for receipt in reversed(receipts)]
    for alone, joint in zip(one_by_one, reversed(together), strict=True):
        torch.testing.assert_close(joint, alone, atol=1e-6, rtol=1e-6)


async def test_activated_experts_are_counted_per_instance(pool: StartPool, config: ModelConfig) -> None:
    running = await pool(HALVES)
    x_TH, _, weights_TK = batch(2, config.hidden_size)
    await run(running, 1, x_TH, torch.tensor([[0, 1, 4], [0, 2, 3]], dtype=torch.int32), weights_TK)
    assert running.exchange.activated() == {"expert-0": [0, 4], "expert-1": [0, 1]}


async def test_a_lost_link_fails_what_waits_for_it_by_name(pool: StartPool, config: ModelConfig) -> None:
    running = await pool(HALVES)
    running.gates["expert-1"].shut()
    receipt = running.exchange.dispatch(0, *batch(4, config.hidden_size))
    async with asyncio.timeout(LIMIT_S):
        await running.gates["expert-1"].arrived.wait()
        running.gates["expert-1"].links[0].abort("killed")
        with pytest.raises(InstanceLost, match="expert-1") as lost:
            await running.exchange.combine(receipt)
    assert lost.value.instances == ("expert-1",)
    assert not running.exchange.ready()
    assert running.exchange.missing() == ("expert-1",)
    with pytest.raises(InstanceLost, match="expert-1"):
        running.exchange.dispatch(0, *batch(4, config.hidden_size))


async def test_a_silent_instance_is_lost_at_the_deadline(pool: StartPool, config: ModelConfig) -> None:
    running = await pool(HALVES, dispatch_timeout_s=0.1)
    running.gates["expert-0"].shut()
    receipt = running.exchange.dispatch(1, *batch(4, config.hidden_size))
    async with asyncio.timeout(LIMIT_S):
        with pytest.raises(InstanceLost, match=r"expert-0: no answer for MoE layer 1 within 0\.1 s") as lost:
            await running.exchange.combine(receipt)
    assert lost.value.instances == ("expert-0",)
    # Its answer comes after all, and belongs to nobody any more.
    running.gates["expert-0"].open()
    y_TH = await run(running, 1, *batch(4, config.hidden_size))
    assert y_TH.isfinite().all()


async def test_a_stale_epoch_is_told_apart_from_a_loss(pool: StartPool, config: ModelConfig) -> None:
    running = await pool(HALVES)
    swapped = table([4, 5, 6, 7], [0, 1, 2, 3], epoch=2)
    for engine in running.engines.values():
        await engine.load(swapped)
    receipt = running.exchange.dispatch(0, *batch(4, config.hidden_size))
    async with asyncio.timeout(LIMIT_S):
        with pytest.raises(ReplicaMissing, match="does not hold what epoch 1 says"):
            await running.exchange.combine(receipt)
    running.exchange.set_placement(Placement.from_table(swapped))
    assert (await run(running, 0, *batch(4, config.hidden_size))).isfinite().all()


async def test_waiting_for_readiness_ends_by_name_or_when_it_comes(pool: StartPool) -> None:
    running = await pool(HALVES)
    exchange = running.exchange
    link = exchange.links.pop("expert-1")
    with pytest.raises(InstanceLost, match=r"not linked to expert-1 after 0\.05 s"):
        await exchange.wait_ready(0.05)
    waiting = await begun(exchange.wait_ready(LIMIT_S), name="wait-ready")
    exchange.links["expert-1"] = link
    exchange.links_changed()
    await waiting
    exchange.set_placement(None)
    with pytest.raises(InstanceLost, match="no placement covers every expert"):
        await exchange.wait_ready(0.05)


async def test_closing_fails_what_is_outstanding(pool: StartPool, config: ModelConfig) -> None:
    running = await pool(HALVES)
    running.gates["expert-0"].shut()
    receipt = running.exchange.dispatch(0, *batch(4, config.hidden_size))
    await running.exchange.close()
    with pytest.raises(InstanceLost, match="the exchange is closing"):
        await running.exchange.combine(receipt)


async def test_a_cancelled_combine_leaves_nothing_pending(pool: StartPool, config: ModelConfig) -> None:
    running = await pool(HALVES)
    running.gates["expert-0"].shut()
    receipt = running.exchange.dispatch(0, *batch(4, config.hidden_size))
    combining = await begun(running.exchange.combine(receipt), name="combine")
    combining.cancel()
    with pytest.raises(asyncio.CancelledError):
        await combining
    running.gates["expert-0"].open()
    assert (await run(running, 0, *batch(4, config.hidden_size, seed=1))).isfinite().all()
    assert not running.exchange._pending
