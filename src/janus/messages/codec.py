"""Control messages as bytes: one msgpack map per message, checked against its type while it is read.

msgspec reads and writes the msgpack in one compiled pass, which matters on the loop that shares the interpreter with
the model. It compares every length with the bytes that are there before it allocates. Tensors never pass through here;
they travel as raw frames.
"""

from __future__ import annotations

import msgspec

from janus.messages.control import Message

#: Raised by one with every incompatible change of a message or of the frame header; compared in the handshake.
PROTOCOL_VERSION = 6

#: The largest control message accepted, in bytes. A placement of 60 layers x 512 slots is about 100 KB.
MAX_MESSAGE_BYTES = 16 << 20

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


def encode(message: Message) -> bytes:
    """Return ``message`` as msgpack bytes."""
    return _encoder.encode(message)


def decode(data: bytes | bytearray | memoryview) -> Message:
    """Return the message in ``data``.

    Raises:
        ValueError: not msgpack, over the limit, an unknown message, or a field missing, unknown or of the wrong type.
    """
    if len(data) > MAX_MESSAGE_BYTES:
        raise ValueError(f"control message of {len(data)} bytes exceeds the limit of {MAX_MESSAGE_BYTES}")
    try:
        return _decoder.decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise ValueError(f"not a control message: {error}") from error
