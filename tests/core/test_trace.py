"""The file of sampled routing: it comes back as it was, other tools read it, and anything else is refused by name."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load as load_safetensors

from janus.core.trace import Trace
from janus.errors import TraceError


def trace(*, layers: int = 2, tokens: int = 5, top_k: int = 3, experts: int = 9, seed: int = 0) -> Trace:
    source = np.random.default_rng(seed)
    ids = np.argsort(source.random((layers, tokens, experts)), axis=2)[..., :top_k].astype(np.uint16)
    return Trace(
        fingerprint="0123456789abcdef",
        num_experts=experts,
        expert_ids=ids,
        weights=source.random(tokens) + 0.5,
        saved_at=1.7e9 + 0.25,
    )


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 4), st.integers(0, 20), st.integers(1, 4), st.integers(4, 300), st.integers(0, 9))
def test_a_trace_comes_back_from_its_file(layers: int, tokens: int, top_k: int, experts: int, seed: int) -> None:
    written = trace(layers=layers, tokens=tokens, top_k=top_k, experts=experts, seed=seed)
    read = Trace.from_bytes(written.to_bytes())
    np.testing.assert_array_equal(read.expert_ids, written.expert_ids)
    np.testing.assert_array_equal(read.weights, written.weights)
    assert (read.fingerprint, read.num_experts, read.saved_at) == ("0123456789abcdef", experts, written.saved_at)
    assert (read.num_layers, read.tokens, read.top_k) == (layers, tokens, top_k)


def test_any_reader_of_safetensors_reads_it() -> None:
    written = trace()
    tensors = load_safetensors(written.to_bytes())
    np.testing.assert_array_equal(tensors["expert_ids"], written.expert_ids)
    np.testing.assert_array_equal(tensors["weights"], written.weights)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_damaged_file_is_refused(data: st.DataObject) -> None:
    whole = trace().to_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        damaged = whole[:at]
    else:
        damaged = whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :]
    try:
        read = Trace.from_bytes(damaged)
    except TraceError:
        return
    # What is not tensor data may read as another date, name or spacing; the tokens are what they were.
    np.testing.assert_array_equal(read.expert_ids, trace().expert_ids)


def forged(**metadata: str) -> bytes:
    whole = trace().to_bytes()
    length = struct.unpack_from("<Q", whole)[0]
    header = json.loads(whole[8 : 8 + length])
    header["__metadata__"] |= metadata
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + whole[8 + length :]


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "no safetensors file"),
        (b"PK\x03\x04 not this one", "no safetensors file"),
        (struct.pack("<Q", 4) + b"[42]", "no JSON object"),
        (struct.pack("<Q", 2) + b"{}", "no trace of janus trace export"),
        (forged(format="pt"), "no trace of janus trace export"),
        (forged(version="9"), "version '9', this Janus reads version 1"),
        (forged(sha256="0" * 64), "checksum"),
        (forged(tokens="six"), "metadata is incomplete"),
        (forged(tokens="6"), "'expert_ids' is not U16 \\[2, 6, 3\\]"),
        (forged(tokens="-5"), "'expert_ids' is not U16"),
        (forged(experts="4"), "names expert"),
        (forged(saved_at="nan"), "date"),
    ],
)
def test_what_is_no_trace_is_refused_by_name(data: bytes, problem: str) -> None:
    with pytest.raises(TraceError, match=problem):
        Trace.from_bytes(data)


def test_a_trace_of_another_model_is_refused_by_name() -> None:
    whole = trace()
    whole.check_model(fingerprint="0123456789abcdef", num_layers=2, num_experts=9, top_k=3)
    with pytest.raises(TraceError, match=r"2 MoE layers of 9 experts, 3 per token; .* 4 MoE layers of 9 experts"):
        whole.check_model(fingerprint="0123456789abcdef", num_layers=4, num_experts=9, top_k=3)
    with pytest.raises(TraceError, match="another model with the same shape"):
        whole.check_model(fingerprint="another", num_layers=2, num_experts=9, top_k=3)


def test_counts_go_by_the_tokens_weights() -> None:
    counted = Trace(
        fingerprint="",
        num_experts=3,
        expert_ids=np.array([[[0, 1], [1, 2]]], dtype=np.uint16),
        weights=np.array([1.0, 10.0]),
        saved_at=0.0,
    )
    assert counted.counts().tolist() == [[1, 11, 10]]
