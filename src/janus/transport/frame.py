"""The frame: a 64-byte header, then the payload, in one contiguous buffer.

Header (little endian)::

    offset  size  field        meaning
    0       4     magic        b"JNUS"
    4       1     version      FRAME_VERSION
    5       1     kind         Kind
    6       2     flags        bit 0: the payload does not follow in this message but under ``tag``
    8       8     request_id   the caller's number; an answer carries the same
    16      8     payload_len  bytes
    24      8     tag          UCX tag of a payload that travels apart, else 0
    32      4     epoch        placement epoch (dispatch), else 0
    36      2     layer        MoE layer, counted over MoE layers only (dispatch, combine), else 0
    38      1     dtype        index into DTYPES (dispatch, combine), else 0
    39      1     top_k        columns of the slot table (dispatch), else 0
    40      4     rows         rows of the activation tensor (dispatch, combine), else 0
    44      4     cols         columns of the activation tensor (dispatch, combine), else 0
    48      4     seq          number of this frame on its link, modulo 2**32
    52      4     ack          frames taken by the sender of this frame so far (returns credits)
    56      4     deadline_ms  how long the sender will wait for the answer, 0 for no answer
    60      4     elapsed_us   microseconds the instance took to compute the answer (combine), else 0
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass

HEADER_BYTES = 64
MAGIC = b"JNUS"
FRAME_VERSION = 1
#: Largest payload accepted unless a link is configured otherwise: 1 GiB, far over any dispatch.
MAX_PAYLOAD_BYTES = 1 << 30
FLAG_PAYLOAD_APART = 1
DTYPES = ("", "float32", "bfloat16", "float16")

_STRUCT = struct.Struct("<4sBBHQQQIHBBIIIIII")


class Kind(enum.IntEnum):
    """What a frame carries. Kinds from 32 on belong to the link itself and never reach its handler."""

    CONTROL = 1
    DISPATCH = 2
    COMBINE = 3
    CREDIT = 32
    PING = 33
    PONG = 34
    BYE = 35
    BYE_ACK = 36


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """A decoded header; field meanings as in the module docstring."""

    kind: Kind
    flags: int = 0
    request_id: int = 0
    payload_len: int = 0
    tag: int = 0
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


def pack_into(buffer: bytearray | memoryview, header: Header) -> None:
    """Write ``header`` into the first 64 bytes of ``buffer``."""
    _STRUCT.pack_into(
        buffer,
        0,
        MAGIC,
        FRAME_VERSION,
        header.kind,
        header.flags,
        header.request_id,
        header.payload_len,
        header.tag,
        header.epoch,
        header.layer,
        header.dtype,
        header.top_k,
        header.rows,
        header.cols,
        header.seq,
        header.ack,
        header.deadline_ms,
        header.elapsed_us,
    )


def unpack(buffer: bytes | bytearray | memoryview, *, max_payload: int = MAX_PAYLOAD_BYTES) -> Header:
    """Return the header at the start of ``buffer``.

    Raises:
        ValueError: too short, wrong magic or version, unknown kind or dtype, or a payload over ``max_payload``.
    """
    if len(buffer) < HEADER_BYTES:
        raise ValueError(f"truncated frame: {len(buffer)} bytes, the header alone has {HEADER_BYTES}")
    magic, version, kind, *rest = _STRUCT.unpack_from(buffer, 0)
    if magic != MAGIC:
        raise ValueError(f"not a Janus frame: it starts with {bytes(magic)!r}")
    if version != FRAME_VERSION:
        raise ValueError(f"frame version {version}, this side speaks {FRAME_VERSION}")
    try:
        known = Kind(kind)
    except ValueError as error:
        raise ValueError(f"unknown frame kind {kind}") from error
    header = Header(
        kind=known,
        flags=rest[0],
        request_id=rest[1],
        payload_len=rest[2],
        tag=rest[3],
        epoch=rest[4],
        layer=rest[5],
        dtype=rest[6],
        top_k=rest[7],
        rows=rest[8],
        cols=rest[9],
        seq=rest[10],
        ack=rest[11],
        deadline_ms=rest[12],
        elapsed_us=rest[13],
    )
    if header.payload_len > max_payload:
        raise ValueError(f"payload of {header.payload_len} bytes exceeds the limit of {max_payload}")
    if header.dtype >= len(DTYPES):
        raise ValueError(f"unknown dtype code {header.dtype}")
    return header
