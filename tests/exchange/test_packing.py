"""The compiled packing against the one in torch: the same rows, the same bytes, the same sums, to the bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from janus.core.placement import Placement, static_placement
from janus.core.scheduling import Assignment, static
from janus.exchange.layout import dispatch_layout, matrix
from janus.exchange.packing import Answer, KernelPacking, Numbering, Packing, Routed, Rows, TorchPacking, packing_for
from janus.model.kernels import load_library
from janus.transport.buffers import BufferPool, aligned_empty
from janus.transport.contract import OutFrame
from janus.transport.frame import HEADER_BYTES

DTYPES = st.sampled_from([torch.float32, torch.bfloat16])
CPU = torch.device("cpu")


def both(dtype: torch.dtype) -> tuple[Packing, Packing]:
    library = load_library()
    assert library is not None, "the kernels do not build here"
    return KernelPacking(library, dtype), TorchPacking(dtype, CPU)


def scheduled(experts: int, instances: int, tokens: int, top_k: int, seed: int) -> tuple[Placement, Assignment]:
    placement = static_placement(
        num_layers=1, num_experts=experts, instances=tuple(f"expert-{index}" for index in range(instances))
    )
    random = np.random.default_rng(seed)
    ids = np.array([random.permutation(experts)[:top_k] for _ in range(tokens)], dtype=np.int32)
    return placement, static(ids, placement, 0)


def empty_frame(nbytes: int) -> OutFrame:
    buffer = BufferPool().take(HEADER_BYTES + nbytes)
    return OutFrame(buffer.array[HEADER_BYTES : HEADER_BYTES + nbytes], buffer)


def answer(y_NH: torch.Tensor, rows: Rows = None) -> Answer:
    payload = aligned_empty(y_NH.nbytes)[0]
    matrix(payload, y_NH.shape[0], y_NH.shape[1], y_NH.dtype).copy_(y_NH)
    return Answer(payload, payload.ctypes.data, len(y_NH), rows)


def random_matrix(rows: int, hidden: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    return torch.randn(rows, hidden, generator=torch.Generator().manual_seed(seed)).to(dtype)


def test_a_cpu_gets_the_kernels_and_other_dtypes_do_not() -> None:
    assert isinstance(packing_for(torch.bfloat16, CPU), KernelPacking)
    assert isinstance(packing_for(torch.float16, CPU), TorchPacking)


@settings(max_examples=80, deadline=None)
@given(
    experts=st.integers(1, 24),
    instances=st.integers(1, 5),
    together=st.integers(1, 3),
    tokens=st.integers(1, 40),
    top_k=st.integers(1, 6),
    hidden=st.integers(1, 70),
    before=st.integers(0, 3),
    dtype=DTYPES,
    seed=st.integers(0, 99),
)
def test_a_destination_is_sent_its_rows(
    *,
    experts: int,
    instances: int,
    together: int,
    tokens: int,
    top_k: int,
    hidden: int,
    before: int,
    dtype: torch.dtype,
    seed: int,
) -> None:
    placement, assignment = scheduled(experts, instances, tokens, min(top_k, experts), seed)
    x_TH = random_matrix(tokens, hidden, dtype, seed)
    weights_TK = torch.rand(assignment.phys_ids.shape, generator=torch.Generator().manual_seed(seed))
    slots, k = placement.slots_per_instance, assignment.phys_ids.shape[1]
    sent = np.zeros(assignment.phys_ids.shape, dtype=np.int64)
    for first in range(0, instances, together):
        group = range(first, min(first + together, instances))
        to = Numbering.of(group, slots=slots, total=instances)
        count, expected_count = (packing.count(assignment, to) for packing in both(dtype))
        assert count == expected_count
        if len(group) == 1:
            assert count == assignment.rows[first]
        if not count:
            continue
        layout = dispatch_layout(before + count, hidden, k, dtype)
        results: list[tuple[Rows, OutFrame]] = []
        for packing in both(dtype):
            frame = empty_frame(layout.nbytes)
            frame.payload[:] = 0
            batch = Routed(x_TH, assignment, weights_TK)
            results.append((packing.pack(frame, layout, batch, to=to, count=count, at=before), frame))
        (rows, frame), (expected_rows, expected_frame) = results
        assert (rows is None) == (expected_rows is None) == (count == tokens)
        chosen = np.arange(tokens) if rows is None else rows
        if expected_rows is not None:
            assert np.array_equal(chosen, expected_rows)
        assert np.array_equal(frame.payload, expected_frame.payload)
        x, slot_table, weights = layout.views(frame.payload)
        assert not x[:before].any() and not slot_table[:before].any() and not weights[:before].any()
        x, slot_table, weights = x[before:], slot_table[before:], weights[before:]
        assert torch.equal(x, x_TH[torch.from_numpy(chosen)])
        assert np.array_equal(weights, weights_TK.numpy()[chosen])
        asked = np.where(slot_table >= 0, slot_table + first * slots, -1)
        assert np.array_equal(asked[slot_table >= 0], assignment.phys_ids[chosen][slot_table >= 0])
        sent[chosen] += slot_table >= 0
    assert (sent == 1).all(), "each choice of each token goes to one destination"


@settings(max_examples=80, deadline=None)
@given(
    tokens=st.integers(1, 20),
    hidden=st.integers(1, 70),
    groups=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    dtype=DTYPES,
    with_residual=st.booleans(),
    seed=st.integers(0, 99),
)
def test_answers_add_up_alike_and_as_a_relay_adds_them(
    *, tokens: int, hidden: int, groups: list[int], dtype: torch.dtype, with_residual: bool, seed: int
) -> None:
    random = np.random.default_rng(seed)
    answers: list[Answer] = []
    by_node: list[Answer] = []
    shape = torch.Size([tokens, hidden])
    for size in groups:
        node: list[Answer] = []
        for _ in range(size):
            rows: Rows = None
            if random.random() < 0.7:
                rows = np.sort(random.permutation(tokens)[: random.integers(1, tokens + 1)]).astype(np.int64)
            count = tokens if rows is None else len(rows)
            node.append(answer(random_matrix(count, hidden, dtype, 100 * seed + len(answers) + len(node)), rows))
        answers += node
        by_node.append(answer(both(dtype)[0].combine(node, [size], shape, None)))
    residual_TH = random_matrix(tokens, hidden, dtype, seed) if with_residual else None
    before = None if residual_TH is None else residual_TH.clone()
    ends = np.cumsum(groups).tolist()
    ours, theirs = (packing.combine(answers, ends, shape, residual_TH) for packing in both(dtype))
    assert ours.dtype == theirs.dtype == dtype
    assert torch.equal(ours, theirs)
    for packing in both(dtype):
        assert torch.equal(packing.combine(by_node, range(1, len(groups) + 1), shape, residual_TH), ours)
    if residual_TH is not None and before is not None:
        assert torch.equal(residual_TH, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_relay_adds_up_in_the_memory_of_its_own_share(dtype: torch.dtype) -> None:
    for packing in both(dtype):
        own, other = random_matrix(5, 37, dtype, 1), random_matrix(5, 37, dtype, 2)
        frame = empty_frame(own.nbytes)
        matrix(frame.payload, 5, 37, dtype).copy_(own)
        packing.reduce([answer(other), Answer(frame.payload, frame.address, 5, None)], [2], frame, 5, 37)
        assert torch.equal(matrix(frame.payload, 5, 37, dtype), (other.float() + own.float()).to(dtype))


def test_a_result_outlives_its_answers() -> None:
    for packing in both(torch.float32):
        frame = answer(torch.ones(2, 3))
        total = packing.combine([frame], [1], torch.Size([2, 3]), None)
        frame.payload[:] = 0
        assert torch.equal(total, torch.ones(2, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_not_a_number_reaches_the_step_that_can_name_it(dtype: torch.dtype) -> None:
    poisoned = torch.ones(1, 20, dtype=dtype)
    poisoned[0, 3] = torch.nan
    for packing in both(dtype):
        total = packing.combine([answer(poisoned)], [1], torch.Size([1, 20]), torch.ones(1, 20, dtype=dtype))
        assert total.isnan().nonzero().tolist() == [[0, 3]]
