"""The compiled packing against the one in torch: the same rows, the same bytes, the same sums, to the bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from janus.core.placement import Placement, static_placement
from janus.core.scheduling import Assignment, static
from janus.exchange.layout import dispatch_layout, dtype_code, matrix
from janus.exchange.packing import KernelPacking, Packing, Rows, TorchPacking, packing_for
from janus.model.kernels import load_library
from janus.transport.buffers import BufferPool
from janus.transport.contract import InFrame, OutFrame
from janus.transport.frame import HEADER_BYTES, Header, Kind

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


def answer(y_NH: torch.Tensor) -> InFrame:
    buffer = BufferPool().take(HEADER_BYTES + y_NH.nbytes)
    payload = buffer.array[HEADER_BYTES : HEADER_BYTES + y_NH.nbytes]
    rows, cols = y_NH.shape
    matrix(payload, rows, cols, y_NH.dtype).copy_(y_NH)
    header = Header(kind=Kind.COMBINE, payload_len=y_NH.nbytes, dtype=dtype_code(y_NH.dtype), rows=rows, cols=cols)
    return InFrame(header, payload, buffer=buffer)


def random_matrix(rows: int, hidden: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    return torch.randn(rows, hidden, generator=torch.Generator().manual_seed(seed)).to(dtype)


def test_a_cpu_gets_the_kernels_and_other_dtypes_do_not() -> None:
    assert isinstance(packing_for(torch.bfloat16, CPU), KernelPacking)
    assert isinstance(packing_for(torch.float16, CPU), TorchPacking)


@settings(max_examples=80, deadline=None)
@given(
    experts=st.integers(1, 24),
    instances=st.integers(1, 5),
    tokens=st.integers(1, 40),
    top_k=st.integers(1, 6),
    hidden=st.integers(1, 70),
    dtype=DTYPES,
    seed=st.integers(0, 99),
)
def test_an_instance_is_sent_its_rows(
    *, experts: int, instances: int, tokens: int, top_k: int, hidden: int, dtype: torch.dtype, seed: int
) -> None:
    placement, assignment = scheduled(experts, instances, tokens, min(top_k, experts), seed)
    x_TH = random_matrix(tokens, hidden, dtype, seed)
    weights_TK = torch.rand(assignment.phys_ids.shape, generator=torch.Generator().manual_seed(seed))
    slots, k = placement.slots_per_instance, assignment.phys_ids.shape[1]
    sent = np.zeros(assignment.phys_ids.shape, dtype=np.int64)
    for instance, count in enumerate(assignment.rows.tolist()):
        if not count:
            continue
        layout = dispatch_layout(count, hidden, k, dtype)
        results: list[tuple[Rows, OutFrame]] = []
        for packing in both(dtype):
            frame = empty_frame(layout.nbytes)
            rows = packing.pack(frame, layout, x_TH, assignment, weights_TK, first=instance * slots, slots=slots)
            results.append((rows, frame))
        (rows, frame), (expected_rows, expected_frame) = results
        assert (rows is None) == (expected_rows is None) == (count == tokens)
        chosen = np.arange(tokens) if rows is None else rows
        if expected_rows is not None:
            assert np.array_equal(chosen, expected_rows)
        for ours, theirs in zip(layout.views(frame.payload), layout.views(expected_frame.payload), strict=True):
            assert torch.equal(torch.as_tensor(ours), torch.as_tensor(theirs))
        x, slot_table, weights = layout.views(frame.payload)
        assert torch.equal(x, x_TH[torch.from_numpy(chosen)])
        assert np.array_equal(weights, weights_TK.numpy()[chosen])
        asked = np.where(slot_table >= 0, slot_table + instance * slots, -1)
        assert np.array_equal(asked[slot_table >= 0], assignment.phys_ids[chosen][slot_table >= 0])
        sent[chosen] += slot_table >= 0
    assert (sent == 1).all(), "each choice of each token goes to one instance"


@settings(max_examples=80, deadline=None)
@given(
    tokens=st.integers(1, 20),
    hidden=st.integers(1, 70),
    parts=st.integers(1, 5),
    dtype=DTYPES,
    with_residual=st.booleans(),
    seed=st.integers(0, 99),
)
def test_answers_add_up_alike(
    *, tokens: int, hidden: int, parts: int, dtype: torch.dtype, with_residual: bool, seed: int
) -> None:
    random = np.random.default_rng(seed)
    answers: list[tuple[InFrame, Rows]] = []
    for part in range(parts):
        rows: Rows = None
        if random.random() < 0.7:
            rows = np.sort(random.permutation(tokens)[: random.integers(1, tokens + 1)]).astype(np.int64)
        count = tokens if rows is None else len(rows)
        answers.append((answer(random_matrix(count, hidden, dtype, 100 * seed + part)), rows))
    residual_TH = random_matrix(tokens, hidden, dtype, seed) if with_residual else None
    before = None if residual_TH is None else residual_TH.clone()
    ours, theirs = (packing.combine(answers, torch.Size([tokens, hidden]), residual_TH) for packing in both(dtype))
    assert ours.dtype == theirs.dtype == dtype
    assert torch.equal(ours, theirs)
    if residual_TH is not None and before is not None:
        assert torch.equal(residual_TH, before)


def test_a_result_outlives_its_answers() -> None:
    for packing in both(torch.float32):
        frame = answer(torch.ones(2, 3))
        total = packing.combine([(frame, None)], torch.Size([2, 3]), None)
        frame.payload[:] = 0
        assert torch.equal(total, torch.ones(2, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_not_a_number_reaches_the_step_that_can_name_it(dtype: torch.dtype) -> None:
    poisoned = torch.ones(1, 20, dtype=dtype)
    poisoned[0, 3] = torch.nan
    for packing in both(dtype):
        total = packing.combine([(answer(poisoned), None)], torch.Size([1, 20]), torch.ones(1, 20, dtype=dtype))
        assert total.isnan().nonzero().tolist() == [[0, 3]]
