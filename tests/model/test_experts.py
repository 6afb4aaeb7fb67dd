"""The expert bank against an f64 oracle, over uneven groups, empty slots and odd sizes."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from janus.errors import ReplicaMissing
from janus.model.checkpoint import Checkpoint
from janus.model.config import ClampedSwiglu, ModelConfig
from janus.model.expert_weights import ExpertWeights
from janus.model.experts import ExpertBank
from janus.model.random_model import random_config, write_random_model


def oracle(
    checkpoint: Checkpoint, layer: int, x: torch.Tensor, experts: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """f64, one (row, expert) pair at a time, from the tensors as stored."""
    out = torch.zeros(x.shape, dtype=torch.float64)
    for row in range(len(x)):
        for column, expert in enumerate(experts[row].tolist()):
            if expert < 0:
                continue
            prefix = f"model.layers.{layer}.mlp.experts.{expert}"
            gate, up, down = (
                checkpoint.read(f"{prefix}.{name}_proj.weight", torch.float64) for name in ("gate", "up", "down")
            )
            y = x[row].double()
            y = down @ (torch.nn.functional.silu(gate @ y) * (up @ y))
            out[row] += weights[row, column].double() * y
    return out


@pytest.fixture(scope="module", params=[(64, 32), (70, 19), (512, 256)], ids=str)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    hidden, width = request.param
    config = random_config(hidden_size=hidden, moe_intermediate_size=width, num_layers=1, num_experts=6)
    path = write_random_model(tmp_path_factory.mktemp("experts"), config, std=0.1)
    return Checkpoint.open(path)


#: Slot -> expert of the banks under test: a permutation, two replicas of expert 3, and slot 5 left empty.
SLOTS = (4, 3, 0, 3, 1)
NUM_SLOTS = 6


def make_bank(checkpoint: Checkpoint, dtype: torch.dtype, kernels: bool) -> ExpertBank:
    bank = ExpertBank(checkpoint.config, 1, NUM_SLOTS, dtype, kernels=kernels)
    for slot, expert in enumerate(SLOTS):
        bank.load(checkpoint, 0, slot, expert)
    return bank


def to_experts(slots: torch.Tensor) -> torch.Tensor:
    table = torch.tensor([*SLOTS, -1])
    return torch.where(slots >= 0, table[slots.long().clamp(min=0)], -1)


@pytest.mark.parametrize("kernels", [True, False], ids=["kernels", "torch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("rows", [0, 1, 2, 7, 8, 9, 33])
def test_equals_oracle(checkpoint: Checkpoint, dtype: torch.dtype, kernels: bool, rows: int) -> None:
    bank = make_bank(checkpoint, dtype, kernels)
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, checkpoint.config.hidden_size, generator=generator).to(dtype)
    # Skewed: most rows choose slot 0; some choices are elsewhere (-1), some rows have none here.
    slots = torch.randint(-1, len(SLOTS), (rows, 3), generator=generator, dtype=torch.int32)
    slots[: rows * 2 // 3, 0] = 0
    slots[rows // 2 :: 5] = -1
    weights = torch.rand(rows, 3, generator=generator)
    got = bank.forward(0, x, slots, weights)
    want = oracle(checkpoint, 0, x, to_experts(slots), weights)
    assert got.dtype == dtype
    if dtype == torch.float32:
        torch.testing.assert_close(got.double(), want, atol=1e-4, rtol=1e-5)
    else:
        scale = float(want.abs().max()) if rows else 1.0
        # The hidden activations are rounded to bf16 (8 bits) before the second product, the output once more.
        torch.testing.assert_close(got.double(), want, atol=0.01 * scale, rtol=0.02)
    assert torch.equal(got[(slots < 0).all(dim=1)], torch.zeros_like(got[(slots < 0).all(dim=1)]))


def clamped_config(hidden: int, width: int) -> ModelConfig:
    """Experts as gpt-oss has them; the limit is low, so that some values are clipped on either side."""
    config = random_config(hidden_size=hidden, moe_intermediate_size=width, num_layers=1, num_experts=4)
    return replace(config, expert_bias=True, swiglu=ClampedSwiglu(alpha=1.3, limit=0.8))


@pytest.mark.parametrize("kernels", [True, False], ids=["kernels", "torch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize(("hidden", "width"), [(64, 32), (70, 19), (34, 48)])
def test_biases_and_the_clamped_activation(dtype: torch.dtype, kernels: bool, hidden: int, width: int) -> None:
    bank = ExpertBank(clamped_config(hidden, width), 1, 4, dtype, kernels=kernels)
    assert bank.expert_nbytes >= bank.config.expert_parameters * dtype.itemsize
    generator = torch.Generator().manual_seed(hidden)

    def draw(*shape: int) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) * 0.2).to(dtype)

    held = [ExpertWeights(draw(2 * width, hidden), draw(hidden, width), draw(2 * width), draw(hidden)) for _ in "abcd"]
    for slot, weights in enumerate(held):
        bank._layers[0].fill(slot, weights)
        bank.hold(0, slot, slot)
    x = torch.randn(9, hidden, generator=generator).to(dtype)
    slots = torch.randint(-1, 4, (9, 2), generator=generator, dtype=torch.int32)
    gates = torch.rand(9, 2, generator=generator)
    want, clipped = torch.zeros(9, hidden, dtype=torch.float64), 0
    for row, column in torch.argwhere(slots >= 0).tolist():
        gate_up, down, gate_up_bias, down_bias = (part.double() for part in held[int(slots[row, column])].tensors())
        gate, up = (gate_up @ x[row].double() + gate_up_bias).chunk(2)
        clipped += int((gate > 0.8).sum() + (up.abs() > 0.8).sum())
        glu = gate.clamp(max=0.8) * torch.sigmoid(1.3 * gate.clamp(max=0.8))
        want[row] += gates[row, column].double() * (down @ ((up.clamp(-0.8, 0.8) + 1) * glu) + down_bias)
    assert clipped
    got = bank.forward(0, x, slots, gates).double()
    atol, rtol = (1e-5, 1e-5) if dtype == torch.float32 else (0.02, 0.02)
    torch.testing.assert_close(got, want, atol=atol, rtol=rtol)


def test_rows_do_not_see_each_other(checkpoint: Checkpoint) -> None:
    """The same row gives the same bits alone and in any company: the kernels never mix rows."""
    bank = make_bank(checkpoint, torch.bfloat16, kernels=True)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(40, checkpoint.config.hidden_size, generator=generator).bfloat16()
    slots = torch.randint(-1, len(SLOTS), (40, 4), generator=generator, dtype=torch.int32)
    weights = torch.rand(40, 4, generator=generator)
    together = bank.forward(0, x, slots, weights)
    for start, end in ((0, 1), (3, 20), (39, 40)):
        assert torch.equal(bank.forward(0, x[start:end], slots[start:end], weights[start:end]), together[start:end])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_several_dispatches_at_once_give_each_its_bits(checkpoint: Checkpoint, dtype: torch.dtype) -> None:
    bank = make_bank(checkpoint, dtype, kernels=True)
    generator = torch.Generator().manual_seed(2)
    counts, hidden = [3, 1, 17], checkpoint.config.hidden_size
    # Two elements more than the rows need: the kernels may read past the end.
    x = [torch.randn(rows * hidden + 2, generator=generator).to(dtype) for rows in counts]
    slots = [torch.randint(-1, len(SLOTS), (rows, 4), generator=generator, dtype=torch.int32) for rows in counts]
    weights = [torch.rand(rows, 4, generator=generator) for rows in counts]
    out = [torch.full((rows, hidden), 7.0, dtype=dtype) for rows in counts]

    def forward() -> None:
        bank.forward_joint(
            0,
            counts,
            4,
            x=[t.data_ptr() for t in x],
            slots=[t.data_ptr() for t in slots],
            weights=[t.data_ptr() for t in weights],
            out=[t.data_ptr() for t in out],
        )

    forward()
    for rows, x_part, slots_part, weights_part, y in zip(counts, x, slots, weights, out, strict=True):
        alone = bank.forward(0, x_part[: rows * hidden].view(rows, hidden), slots_part, weights_part)
        assert torch.equal(y, alone)
    slots[1][0, 0] = len(SLOTS)
    with pytest.raises(ReplicaMissing, match="of MoE layer 0 holds no expert"):
        forward()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), rows=st.integers(0, 20), k=st.integers(1, 5))
def test_parts_on_several_banks_add_up(checkpoint: Checkpoint, data: st.DataObject, rows: int, k: int) -> None:
    """However slots are split among instances, the partial sums add up to the whole."""
    bank = make_bank(checkpoint, torch.float32, kernels=True)
    choice = st.lists(st.integers(-1, len(SLOTS) - 1), min_size=rows * k, max_size=rows * k)
    slots = torch.tensor(data.draw(choice), dtype=torch.int32).view(rows, k)
    here = torch.tensor(data.draw(st.lists(st.booleans(), min_size=rows * k, max_size=rows * k)), dtype=torch.bool)
    here = here.view(rows, k)
    x = torch.randn(rows, checkpoint.config.hidden_size, generator=torch.Generator().manual_seed(0))
    weights = torch.rand(rows, k, generator=torch.Generator().manual_seed(1))
    nowhere = torch.tensor(-1, dtype=torch.int32)
    whole = bank.forward(0, x, slots, weights)
    parts = [bank.forward(0, x, torch.where(mask, slots, nowhere), weights) for mask in (here, ~here)]
    torch.testing.assert_close(parts[0] + parts[1], whole, atol=1e-4, rtol=1e-5)
    assert bank.activated(slots) == len({slot for slot in slots.flatten().tolist() if slot >= 0})


@pytest.mark.parametrize("kernels", [True, False], ids=["kernels", "torch"])
@pytest.mark.parametrize("slot", [5, 6, 2_000_000_000])
def test_empty_or_unknown_slot_is_refused_and_out_untouched(checkpoint: Checkpoint, kernels: bool, slot: int) -> None:
    bank = make_bank(checkpoint, torch.float32, kernels)
    x = torch.ones(2, checkpoint.config.hidden_size)
    out = torch.full_like(x, 7.0)
    slots = torch.tensor([[0], [slot]], dtype=torch.int32)
    with pytest.raises(ReplicaMissing, match=str(slot)):
        bank.forward(0, x, slots, torch.ones(2, 1), out=out)
    assert torch.equal(out, torch.full_like(x, 7.0))


def test_slots_come_and_go(checkpoint: Checkpoint) -> None:
    bank = make_bank(checkpoint, torch.float32, kernels=True)
    x, weights = torch.randn(3, checkpoint.config.hidden_size), torch.ones(3, 1)
    before = bank.forward(0, x, torch.full((3, 1), 1, dtype=torch.int32), weights)
    bank.unload(0, 1)
    assert bank.slot_expert[0] == [4, -1, 0, 3, 1, -1]
    with pytest.raises(ReplicaMissing):
        bank.forward(0, x, torch.full((3, 1), 1, dtype=torch.int32), weights)
    out = torch.empty_like(x)
    after = bank.forward(0, x, torch.full((3, 1), 3, dtype=torch.int32), weights, out=out)
    assert after is out
    assert torch.equal(after, before)
    bank.load(checkpoint, 0, 1, 5)
    assert bank.slot_expert[0][1] == 5


def test_loading_reads_one_expert(random_model: Callable[..., Path]) -> None:
    opened = Checkpoint.open(random_model())
    bank = ExpertBank(opened.config, opened.config.num_moe_layers, 2, torch.float32)
    assert opened.bytes_read == 0
    bank.load(opened, 1, 0, 5)
    assert opened.bytes_read == 3 * opened.config.hidden_size * opened.config.moe_intermediate_size * 4


def test_wrong_inputs_are_named(checkpoint: Checkpoint) -> None:
    bank = make_bank(checkpoint, torch.float32, kernels=True)
    x = torch.ones(2, checkpoint.config.hidden_size)
    slots, weights = torch.zeros(2, 1, dtype=torch.int32), torch.ones(2, 1)
    with pytest.raises(ValueError, match=r"x is torch\.bfloat16"):
        bank.forward(0, x.bfloat16(), slots, weights)
    with pytest.raises(ValueError, match=r"slots are torch\.int64"):
        bank.forward(0, x, slots.long(), weights)
    with pytest.raises(ValueError, match="weights are"):
        bank.forward(0, x, slots, weights.double())
    with pytest.raises(ValueError, match="out is"):
        bank.forward(0, x, slots, weights, out=torch.empty(3, 3))


@pytest.mark.parametrize("kernels", [True, False], ids=["kernels", "torch"])
def test_more_slots_keep_what_is_held(checkpoint: Checkpoint, kernels: bool) -> None:
    bank = make_bank(checkpoint, torch.float32, kernels)
    x, weights = torch.randn(3, checkpoint.config.hidden_size), torch.ones(3, 1)
    slots = torch.tensor([[0], [2], [3]], dtype=torch.int32)
    before, read = bank.forward(0, x, slots, weights), checkpoint.bytes_read
    bank.grow(NUM_SLOTS + 3)
    assert torch.equal(bank.forward(0, x, slots, weights), before)
    assert (bank.slots, checkpoint.bytes_read) == (NUM_SLOTS + 3, read)
    with pytest.raises(ReplicaMissing):
        bank.forward(0, x, torch.full((3, 1), NUM_SLOTS + 2, dtype=torch.int32), weights)
    bank.load(checkpoint, 0, NUM_SLOTS + 2, bank.slot_expert[0][0])
    assert torch.equal(
        bank.forward(0, x[:1], torch.tensor([[NUM_SLOTS + 2]], dtype=torch.int32), weights[:1]), before[:1]
    )


@pytest.mark.parametrize("kernels", [True, False], ids=["kernels", "torch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_an_expert_may_be_copied_from_bank_to_bank(checkpoint: Checkpoint, dtype: torch.dtype, kernels: bool) -> None:
    bank, other = make_bank(checkpoint, dtype, kernels), ExpertBank(checkpoint.config, 1, 1, dtype, kernels=kernels)
    expert = bank.slot_expert[0][0]
    weights = bank.weights(0, expert)
    assert weights is not None
    assert (bank.layout, weights.nbytes) == (other.layout, other.expert_nbytes)
    other.room(0, 0).copy_(weights)
    x, gate = torch.randn(4, checkpoint.config.hidden_size).to(dtype), torch.ones(4, 1)
    zero = torch.zeros(4, 1, dtype=torch.int32)
    with pytest.raises(ReplicaMissing):  # filled is not held
        other.forward(0, x, zero, gate)
    other.hold(0, 0, expert)
    assert torch.equal(other.forward(0, x, zero, gate), bank.forward(0, x, zero, gate))
    assert other.weights(0, expert + 1) is None


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="counts pages as Linux does")
def test_an_emptied_slot_takes_no_memory() -> None:
    config = replace(random_config(), hidden_size=512, moe_intermediate_size=1024)
    bank = ExpertBank(config, 1, 8, torch.float32)
    if not bank.takes_addresses:
        pytest.skip("no kernels: torch's allocator keeps what is freed")
    gate_up, down = torch.ones(2048, 512), torch.ones(512, 1024)

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE

    empty = resident()
    for slot in range(8):
        bank.room(0, slot).fill_(1)
        bank.hold(0, slot, slot)
    full = resident()
    assert full - empty > 7 * bank.expert_nbytes
    for slot in range(6):
        bank.unload(0, slot)
    assert full - resident() > 5 * bank.expert_nbytes
    assert bank.resident_nbytes == 2 * bank.expert_nbytes
    assert bool((bank.room(0, 6) == 1).all())
    # And may be filled again.
    bank._layers[0].fill(0, ExpertWeights(gate_up, down))
    bank.hold(0, 0, 5)
    y = bank.forward(0, torch.zeros(1, 512), torch.zeros(1, 1, dtype=torch.int32), torch.ones(1, 1))
    assert torch.equal(y, torch.zeros(1, 512))
