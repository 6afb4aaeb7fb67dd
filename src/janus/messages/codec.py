"""Control messages as bytes: a msgpack map per message, with limits that hold before anything is allocated.

msgpack does the bytes (it can refuse an absurd length up front), msgspec the types (a field that is missing, of the
wrong type or unknown is refused by name). Tensors never pass through here; they travel as raw frames.
"""

from __future__ import annotations

from typing import Any

import msgpack
import msgspec

from janus.messages.control import Message

#: Raised by one with every incompatible change of a message or of the frame header; compared in the handshake.
PROTOCOL_VERSION = 1

#: The largest control message accepted, in bytes. A placement of 60 layers x 512 slots is about 100 KB.
MAX_MESSAGE_BYTES = 16 << 20


def encode(message: Message) -> bytes:
    """Return ``message`` as msgpack bytes."""
    packed: bytes = msgpack.packb(msgspec.to_builtins(message, builtin_types=(bytes,)), use_bin_type=True)
    return packed


def decode(data: bytes | bytearray | memoryview) -> Message:
    """Return the message in ``data``.

    Raises:
        ValueError: not msgpack, over a limit, an unknown message, or a field missing, unknown or of the wrong type.
    """
    if len(data) > MAX_MESSAGE_BYTES:
        raise ValueError(f"control message of {len(data)} bytes exceeds the limit of {MAX_MESSAGE_BYTES}")
    try:
        raw: Any = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
        )  # str, bin, array and map lengths are limited to len(data) by msgpack itself
    except Exception as error:  # msgpack raises a family of unrelated classes on hostile input
        raise ValueError(f"not a msgpack control message: {error}") from error
    try:
        message: Message = msgspec.convert(raw, Message)
    except (msgspec.ValidationError, RecursionError) as error:
        raise ValueError(f"malformed control message: {error}") from error
    return message
