"""Links between instances: frames, the handshake, credits and heartbeats, over UCX, TCP or (shared) memory."""

from janus.transport.endpoint import Listener, admit_all, connect, listen
from janus.transport.frame import Header, Kind
from janus.transport.lending import SharedPool, shared_pool
from janus.transport.link import InFrame, Link, LinkHandler, LinkOptions, LinkStats, OutFrame
from janus.transport.wire import TRANSPORT_KINDS, TransportKind

__all__ = [
    "TRANSPORT_KINDS",
    "Header",
    "InFrame",
    "Kind",
    "Link",
    "LinkHandler",
    "LinkOptions",
    "LinkStats",
    "Listener",
    "OutFrame",
    "SharedPool",
    "TransportKind",
    "admit_all",
    "connect",
    "listen",
    "shared_pool",
]
