"""Control messages: plain msgpack on the wire, strict and bounded when read."""

from __future__ import annotations

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from janus.messages import decode, encode
from janus.messages.codec import MAX_MESSAGE_BYTES
from janus.messages.control import Cancel, Heartbeat, Hello, Identity, SamplingParams, Submit, TokenDelta, Tokens

IDENTITY = Identity(protocol=1, role="expert", instance="expert-0", node="n", incarnation="i")
EXAMPLES = [
    Hello(identity=IDENTITY, nonce=b"\x00\xff"),
    Submit(request_id="r", prompt_ids=[1, 2**31], params=SamplingParams(seed=-(2**63), stop_token_ids=[3])),
    Heartbeat(state="ready", activated={"expert-0": [1, 2]}, kv_usage=0.5),
    Tokens(deltas=[TokenDelta(request_id="r", index=0, token_ids=[7], finish_reason="length")]),
    Cancel(request_id="é\n"),
]


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda m: type(m).__name__)
def test_a_message_survives_and_any_msgpack_reader_can_read_it(message: Submit) -> None:
    data = encode(message)
    assert decode(data) == message
    assert msgpack.unpackb(data)["type"] == type(message).__struct_config__.tag


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "truncated"),
        (b"\xc1", "malformed"),
        (b"\xdf\xff\xff\xff\xff", "truncated"),
        (b"\xdd\xff\xff\xff\xff", "array"),
        (b"\x91" * 100_000, "array"),
        (msgpack.packb({"type": "no such message"}), "no such message"),
        (msgpack.packb({"type": "cancel"}), "request_id"),
        (msgpack.packb({"type": "cancel", "request_id": 1}), "request_id"),
        (msgpack.packb({"type": "cancel", "request_id": "r", "force": True}), "force"),
        (msgpack.packb({"type": "leave", "reason": "x"})[:-1], "truncated"),
        (b"\x82\xa4type\xa6cancel\xaarequest_id\xdb\xff\xff\xff\xffab", "truncated"),
        (b"\x82\xa4type\xa6cancel\xaarequest_id\xa2\xff\xfe", "utf-8"),
        (bytes(MAX_MESSAGE_BYTES + 1), "exceeds the limit"),
    ],
)
def test_bytes_that_are_no_message_are_refused_by_name(data: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        decode(data)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_give_a_message_or_a_value_error(data: bytes) -> None:
    try:
        message = decode(data)
    except ValueError:
        return
    assert decode(encode(message)) == message
