"""The frame: a 64-byte header, then the payload, in one contiguous buffer and in one message of the wire below.

Header (little endian)::

    offset  size  field        meaning
    0       4     magic        b"JNUS"
    4       1     version      FRAME_VERSION
    5       1     kind         Kind
    6       2     flags        Flags (dispatch), else 0
    8       8     request_id   the caller's number; an answer carries the same
    16      8     payload_len  bytes
    24      4     target       which way a hand-in is to go on (dispatch), else 0
    28      4     reserved     0
    32      4     epoch        placement epoch (dispatch), else 0
    36      2     layer        MoE layer, counted over MoE layers only (dispatch, combine, replica), else 0
    38      1     dtype        index into DTYPES (dispatch, combine), else 0
    39      1     top_k        columns of the slot table (dispatch), else 0
    40      4     rows         rows of the activation tensor (dispatch, combine); the expert (replica)
    44      4     cols         columns of the activation tensor (dispatch, combine); CRC-32 of the payload (replica)
    48      4     seq          number of this frame on its link, modulo 2**32
    52      4     ack          frames taken by the sender of this frame so far (returns credits), modulo 2**32
    56      4     deadline_ms  how long the sender will wait for the answer, 0 for no answer
    60      4     elapsed_us   microseconds the instance took to compute the answer (combine), else 0
"""

from __future__ import annotations

import enum
import struct
from typing import Final, TypedDict

import msgspec

HEADER_BYTES = 64
MAGIC = b"JNUS"
FRAME_VERSION = 2
#: Largest payload accepted unless a link is configured otherwise: 1 GiB, far over any dispatch.
MAX_PAYLOAD_BYTES = 1 << 30
DTYPES = ("", "float32", "bfloat16", "float16")

_STRUCT = struct.Struct("<4sBBHQQIIIHBBIIIIII")


class Kind(enum.IntEnum):
    """What a frame carries. Kinds from 32 on belong to the link itself and never reach its handler."""

    CONTROL = 1
    DISPATCH = 2
    COMBINE = 3
    #: A piece of an expert's weights, from one expert instance to another.
    REPLICA = 4
    CREDIT = 32
    PING = 33
    PONG = 34
    BYE = 35
    BYE_ACK = 36


class Flags:
    """What kind of dispatch a frame is; 0 is one from an attention instance to an expert instance. Plain numbers: an
    enum's ``&`` takes microseconds.

    Bits 8 to 11 are a number: the scheduler that every expert instance uses for a dispatch with EGATE.
    """

    #: Between attention instances of a node: rows for the receiver to post; the slots are physical replica ids.
    HAND_IN: Final = 1
    #: For all instances of the receiver's node: the slots are numbered through the node, the receiver is the relay.
    NODE: Final = 2
    #: From the relay to another instance of its node; the answer goes to the relay.
    FORWARDED: Final = 4
    #: Activations alone, with no choice of experts: each expert instance gates and schedules, all of them alike.
    EGATE: Final = 8


_KINDS = {int(kind): kind for kind in Kind}
#: Kinds below this one cost a credit.
FIRST_LINK_KIND = Kind.CREDIT


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """A decoded header; field meanings as in the module docstring.

    A msgspec struct, since one is made per frame received: a frozen dataclass sets its 14 fields one by one in Python.
    """

    kind: Kind
    flags: int = 0
    request_id: int = 0
    payload_len: int = 0
    epoch: int = 0
    layer: int = 0
    dtype: int = 0
    top_k: int = 0
    rows: int = 0
    cols: int = 0
    seq: int = 0
    ack: int = 0
    deadline_ms: int = 0
    elapsed_us: int = 0
    target: int = 0


class HeaderFields(TypedDict, total=False):
    """Those fields of a header that whoever posts a frame may set, by name; 0 where one is left out."""

    flags: int
    request_id: int
    epoch: int
    layer: int
    dtype: int
    top_k: int
    rows: int
    cols: int
    deadline_ms: int
    elapsed_us: int
    target: int


#: Writes a header's fields, all of them and as they lie: ``pack_values(buffer, 0, MAGIC, FRAME_VERSION, kind, flags,
#: request_id, payload_len, target, 0, epoch, layer, dtype, top_k, rows, cols, seq, ack, deadline_ms, elapsed_us)``.
pack_values = _STRUCT.pack_into

Writable = bytearray | memoryview
Readable = bytes | bytearray | memoryview


def pack_fields(
    buffer: Writable,
    kind: int,
    request_id: int,
    payload_len: int,
    *,
    seq: int = 0,
    ack: int = 0,
    epoch: int = 0,
    layer: int = 0,
    dtype: int = 0,
    top_k: int = 0,
    rows: int = 0,
    cols: int = 0,
    deadline_ms: int = 0,
    elapsed_us: int = 0,
    flags: int = 0,
    target: int = 0,
) -> None:
    """Write a header into the first 64 bytes of ``buffer`` without building a ``Header``.

    Raises:
        struct.error: a value does not fit its field.
    """
    _STRUCT.pack_into(
        buffer,
        0,
        MAGIC,
        FRAME_VERSION,
        kind,
        flags,
        request_id,
        payload_len,
        target,
        0,
        epoch,
        layer,
        dtype,
        top_k,
        rows,
        cols,
        seq,
        ack,
        deadline_ms,
        elapsed_us,
    )


def pack_into(buffer: Writable, header: Header) -> None:
    """Write ``header`` into the first 64 bytes of ``buffer``."""
    pack_fields(
        buffer,
        header.kind,
        header.request_id,
        header.payload_len,
        seq=header.seq,
        ack=header.ack,
        epoch=header.epoch,
        layer=header.layer,
        dtype=header.dtype,
        top_k=header.top_k,
        rows=header.rows,
        cols=header.cols,
        deadline_ms=header.deadline_ms,
        elapsed_us=header.elapsed_us,
        flags=header.flags,
        target=header.target,
    )


def unpack(buffer: Readable, *, max_payload: int = MAX_PAYLOAD_BYTES, nbytes: int | None = None) -> Header:
    """Return the header at the start of ``buffer``. ``nbytes``: the size of the whole frame, where it is known.

    Raises:
        ValueError: too short, wrong magic or version, unknown kind or dtype, a payload over ``max_payload``, or of
            another size than ``nbytes`` says.
    """
    here = len(buffer) if nbytes is None else nbytes
    if here < HEADER_BYTES:
        raise ValueError(f"truncated frame: {here} bytes, the header alone has {HEADER_BYTES}")
    # fmt: off
    (magic, version, kind, flags, request_id, payload_len, target, _, epoch, layer, dtype, top_k, rows, cols,
     seq, ack, deadline_ms, elapsed_us) = _STRUCT.unpack_from(buffer, 0)
    # fmt: on
    if magic != MAGIC:
        raise ValueError(f"not a Janus frame: it starts with {bytes(magic)!r}")
    if version != FRAME_VERSION:
        raise ValueError(f"frame version {version}, this side speaks {FRAME_VERSION}")
    known = _KINDS.get(kind)
    if known is None:
        raise ValueError(f"unknown frame kind {kind}")
    if payload_len > max_payload:
        raise ValueError(f"payload of {payload_len} bytes exceeds the limit of {max_payload}")
    if nbytes is not None and payload_len != nbytes - HEADER_BYTES:
        came = nbytes - HEADER_BYTES
        raise ValueError(f"truncated frame: the header announces {payload_len} bytes of payload, {came} came")
    if dtype >= len(DTYPES):
        raise ValueError(f"unknown dtype code {dtype}")
    return Header(
        kind=known,
        flags=flags,
        request_id=request_id,
        payload_len=payload_len,
        epoch=epoch,
        layer=layer,
        dtype=dtype,
        top_k=top_k,
        rows=rows,
        cols=cols,
        seq=seq,
        ack=ack,
        deadline_ms=deadline_ms,
        elapsed_us=elapsed_us,
        target=target,
    )
