"""What instances say to each other: typed control messages, and the msgpack codec with its limits."""

from janus.messages.codec import PROTOCOL_VERSION, decode, encode
from janus.messages.control import Message

__all__ = ["PROTOCOL_VERSION", "Message", "decode", "encode"]
