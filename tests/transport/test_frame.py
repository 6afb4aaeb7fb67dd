"""Headers survive the trip, and hostile bytes are refused by name."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from janus.transport import frame
from janus.transport.frame import HEADER_BYTES, Header, Kind, pack_into, unpack

U8, U16, U32, U64 = (st.integers(0, 2**bits - 1) for bits in (8, 16, 32, 64))
HEADERS = st.builds(
    Header,
    kind=st.sampled_from(Kind),
    flags=U16,
    request_id=U64,
    payload_len=st.integers(0, frame.MAX_PAYLOAD_BYTES),
    epoch=U32,
    layer=U16,
    dtype=st.integers(0, len(frame.DTYPES) - 1),
    top_k=U8,
    rows=U32,
    cols=U32,
    seq=U32,
    ack=U32,
    deadline_ms=U32,
    elapsed_us=U32,
)


@given(HEADERS)
def test_round_trip(header: Header) -> None:
    buffer = bytearray(HEADER_BYTES)
    pack_into(buffer, header)
    assert unpack(buffer) == header


@given(st.binary(max_size=200))
def test_garbage_raises_value_error_or_is_a_header(data: bytes) -> None:
    try:
        assert isinstance(unpack(data), Header)
    except ValueError as error:
        assert str(error)


def packed(**fields: int) -> bytearray:
    buffer = bytearray(HEADER_BYTES)
    pack_into(buffer, msgspec.structs.replace(Header(kind=Kind.DISPATCH), **fields))
    return buffer


def test_what_is_wrong_is_named() -> None:
    good = packed()
    for position, value, words in [(0, 0, "not a Janus frame"), (4, 9, "frame version 9"), (5, 200, "kind 200")]:
        bad = bytearray(good)
        bad[position] = value
        with pytest.raises(ValueError, match=words):
            unpack(bad)
    with pytest.raises(ValueError, match="truncated frame: 63 bytes"):
        unpack(good[:63])
    with pytest.raises(ValueError, match="exceeds the limit of 10"):
        unpack(packed(payload_len=11), max_payload=10)
    with pytest.raises(ValueError, match="exceeds the limit"):
        unpack(packed(payload_len=2**63))
    with pytest.raises(ValueError, match="unknown dtype code 77"):
        unpack(packed(dtype=77))
    with pytest.raises(ValueError, match="announces 5 bytes of payload, 0 came"):
        unpack(packed(payload_len=5), nbytes=64)
