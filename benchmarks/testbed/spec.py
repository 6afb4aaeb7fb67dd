"""What a testbed is asked for and what it reports."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

MAX_NODES = 64
#: Of every node's link: the large frames that networks of such machines are set to.
MTU = 9000
_NODE_NAME = re.compile(r"[a-z][a-z0-9]{0,14}")


class TestbedError(Exception):
    """The testbed cannot do what it was asked for; the message says what to do about it."""

    __test__ = False  # not a test class, whatever its name suggests to pytest


class TestbedUnavailable(TestbedError):
    """This machine does not permit a testbed; the message is one line that says why and what would help."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkSpec:
    """Every node's link to the switch between them.

    Attributes:
        latency_us: one-way latency between two nodes in microseconds, on top of what the hosts themselves take.
        rate_gbit: rate of a node's port in each direction in Gbit/s of IP packets; 0 is as fast as the machine goes.
    """

    latency_us: float = 50.0
    rate_gbit: float = 10.0

    def __post_init__(self) -> None:
        if not 0 <= self.latency_us <= 1_000_000:
            raise ValueError(f"latency_us is {self.latency_us}: give microseconds from 0 to 1000000")
        if not (self.rate_gbit == 0 or 0.001 <= self.rate_gbit <= 400):
            raise ValueError(f"rate_gbit is {self.rate_gbit}: give Gbit/s from 0.001 to 400, or 0 for no limit")

    @property
    def latency_ns(self) -> int:
        return round(self.latency_us * 1000)

    @property
    def bits_per_s(self) -> int:
        return round(self.rate_gbit * 1e9)

    def __str__(self) -> str:
        rate = f"{self.rate_gbit:g} Gbit/s" if self.rate_gbit else "no rate limit"
        return f"{self.latency_us:g} us, {rate}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkTraffic:
    """What one node has sent to another since the testbed came up, counted where it arrives.

    Attributes:
        packets: IP packets as they would travel (a large TCP segment counts as the packets that it stands for).
        bytes: their size, IP headers included.
        dropped: packets lost: the node was cut off, or a queue was full.
    """

    packets: int = 0
    bytes: int = 0
    dropped: int = 0

    def __sub__(self, earlier: LinkTraffic) -> LinkTraffic:
        return LinkTraffic(
            packets=self.packets - earlier.packets,
            bytes=self.bytes - earlier.bytes,
            dropped=self.dropped - earlier.dropped,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Two plain blocking TCP sockets between two nodes.

    Attributes:
        rtt_p50_us: median round trip of 64 bytes.
        rtt_p99_us: its 99th percentile.
        gbit_per_s: payload of a bulk transfer in one direction.
    """

    rtt_p50_us: float
    rtt_p99_us: float
    gbit_per_s: float


def check_nodes(nodes: Sequence[str]) -> tuple[str, ...]:
    """Return the names as a tuple.

    Raises:
        ValueError: too few, too many, twice the same, or a name that is no short lower-case word.
    """
    if not 2 <= len(nodes) <= MAX_NODES:
        raise ValueError(f"nodes: {len(nodes)} given, a testbed has 2 to {MAX_NODES}")
    if len(set(nodes)) != len(nodes):
        raise ValueError(f"nodes: {', '.join(nodes)} names one twice")
    for node in nodes:
        if not _NODE_NAME.fullmatch(node):
            raise ValueError(f"nodes: {node!r} must be a lower-case letter and up to 14 letters or digits")
    return tuple(nodes)
