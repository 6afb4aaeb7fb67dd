"""The payload of dispatch frames: sections do not overlap, are aligned, and a wrong header is refused by name."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from janus.exchange.layout import ALIGNMENT, DispatchLayout, check_dispatch, dtype_code, matrix
from janus.transport.frame import Header, Kind

SHAPES = st.builds(
    DispatchLayout,
    rows=st.integers(1, 70),
    hidden=st.integers(1, 130),
    top_k=st.integers(1, 9),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)


def header_of(layout: DispatchLayout) -> Header:
    return Header(
        kind=Kind.DISPATCH,
        payload_len=layout.nbytes,
        layer=1,
        dtype=dtype_code(layout.dtype),
        top_k=layout.top_k,
        rows=layout.rows,
        cols=layout.hidden,
    )


@given(SHAPES)
def test_sections_hold_what_was_written_and_do_not_overlap(layout: DispatchLayout) -> None:
    payload = np.zeros(layout.nbytes, dtype=np.uint8)
    x, slots, weights = layout.views(payload)
    x_want = torch.arange(x.numel()).reshape(x.shape).to(layout.dtype)
    slots_want = np.arange(slots.size, dtype=np.int32).reshape(slots.shape)
    weights_want = np.linspace(0, 1, weights.size, dtype=np.float32).reshape(weights.shape)
    x.copy_(x_want)
    slots[:] = slots_want
    weights[:] = weights_want
    again = layout.views(payload)
    assert torch.equal(again[0], x_want)
    assert np.array_equal(again[1], slots_want)
    assert np.array_equal(again[2], weights_want)
    assert layout.slots_at % ALIGNMENT == 0
    assert layout.weights_at % ALIGNMENT == 0


@given(SHAPES)
def test_a_right_header_gives_the_layout_back(layout: DispatchLayout) -> None:
    assert check_dispatch(header_of(layout), hidden=layout.hidden, dtype=layout.dtype, num_layers=2) == layout


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"cols": 63}, "63 columns"),
        ({"dtype": 0}, "untyped"),
        ({"dtype": 1}, "float32"),
        ({"layer": 2}, "layer 2"),
        ({"rows": 0}, "0 rows"),
        ({"top_k": 0}, "0 choices"),
        ({"payload_len": 17}, "17 bytes"),
        ({"rows": 2**31}, "its header describes"),
    ],
)
def test_a_wrong_header_is_refused_by_name(change: dict[str, int], words: str) -> None:
    layout = DispatchLayout(3, 64, 4, torch.bfloat16)
    header = msgspec.structs.replace(header_of(layout), **change)
    with pytest.raises(ValueError, match=words):
        check_dispatch(header, hidden=64, dtype=torch.bfloat16, num_layers=2)


def test_matrix_shares_memory() -> None:
    payload = np.zeros(64, dtype=np.uint8)
    matrix(payload, 2, 4, torch.float32)[1, 3] = 1.0
    assert payload[28:32].tobytes() == np.float32(1.0).tobytes()
