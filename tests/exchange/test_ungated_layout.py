"""Dispatches without routing: what the batches' counts may say, and what is refused whatever they say."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from janus.exchange.layout import ALIGNMENT, UngatedLayout, check_ungated, dtype_code
from janus.transport.frame import Header, Kind

HIDDEN, LAYERS, DTYPE = 6, 2, torch.bfloat16
COUNTS = st.lists(st.integers(1, 30), min_size=1, max_size=8)
INT32 = st.integers(-(2**31), 2**31 - 1)
HOSTILE = st.lists(st.one_of(st.integers(-3, 40), INT32), min_size=1, max_size=8)


def dispatch(rows: int, counts: list[int]) -> tuple[Header, np.ndarray]:
    """A frame whose header is right, with ``counts`` where the batches' row counts lie."""
    layout = UngatedLayout(rows, HIDDEN, len(counts), DTYPE)
    payload = np.zeros(layout.nbytes, dtype=np.uint8)
    layout.views(payload)[1][:] = counts
    header = Header(
        kind=Kind.DISPATCH,
        payload_len=layout.nbytes,
        layer=1,
        dtype=dtype_code(DTYPE),
        top_k=len(counts),
        rows=rows,
        cols=HIDDEN,
    )
    return header, payload


def check(header: Header, payload: np.ndarray) -> UngatedLayout:
    return check_ungated(header, payload, hidden=HIDDEN, dtype=DTYPE, num_layers=LAYERS)


@given(COUNTS)
def test_a_right_frame_gives_its_layout_and_its_batches(counts: list[int]) -> None:
    header, payload = dispatch(sum(counts), counts)
    layout = check(header, payload)
    x, batches = layout.views(payload)
    assert (tuple(x.shape), batches.tolist()) == ((sum(counts), HIDDEN), counts)
    # Activations and counts share no byte.
    x.fill_(-1.0)
    assert batches.tolist() == counts
    assert layout.batches_at % ALIGNMENT == 0
    assert layout.batches_at >= layout.x_nbytes


@given(st.integers(1, 120), HOSTILE)
def test_counts_that_are_no_partition_of_the_rows_are_refused(rows: int, counts: list[int]) -> None:
    header, payload = dispatch(rows, counts)
    if min(counts) >= 1 and sum(counts) == rows:
        assert check(header, payload).rows == rows
    else:
        with pytest.raises(ValueError, match=f"{rows} rows in batches of"):
            check(header, payload)


def test_counts_whose_sum_overflows_are_refused() -> None:
    header, payload = dispatch(2, [2**31 - 1, 2**31 - 1, 2, 2])
    with pytest.raises(ValueError, match="2 rows in batches of"):
        check(header, payload)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "rows": st.integers(0, 2**32 - 1),
            "top_k": st.integers(0, 2**16 - 1),
            "cols": st.integers(0, 2**32 - 1),
            "layer": st.integers(0, 2**16 - 1),
            "payload_len": st.integers(0, 1 << 20),
        },
    )
)
def test_whatever_a_header_says_no_view_reaches_beyond_the_payload(change: dict[str, int]) -> None:
    header, payload = dispatch(5, [2, 3])
    changed = msgspec.structs.replace(header, **change)
    shape = (changed.rows, changed.top_k, changed.cols, changed.payload_len)
    if shape == (5, 2, HIDDEN, len(payload)) and changed.layer < LAYERS:
        assert check(changed, payload).nbytes == len(payload)
        return
    with pytest.raises(ValueError, match="dispatch"):
        check(changed, payload)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"cols": HIDDEN + 1}, f"{HIDDEN + 1} columns"),
        ({"dtype": 0}, "untyped"),
        ({"dtype": dtype_code(torch.float32)}, "float32"),
        ({"layer": LAYERS}, f"layer {LAYERS}"),
        ({"rows": 0}, "0 rows"),
        ({"top_k": 0}, "0 choices"),
        ({"payload_len": 3}, "3 bytes"),
    ],
)
def test_a_wrong_header_is_refused_by_name(change: dict[str, int], words: str) -> None:
    header, payload = dispatch(5, [2, 3])
    with pytest.raises(ValueError, match=words):
        check(msgspec.structs.replace(header, **change), payload)
