"""The links between nodes where the kernel has netem: veth pairs into a bridge in a namespace of its own, the hub.

A node's ``net0`` delays and serialises what it sends (netem); the hub's port towards a node passes no more than the
rate (tbf, with a burst that lets a lone sender through undelayed), so that senders that meet at one node share it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import permutations
from typing import Any

from benchmarks.testbed import namespaces
from benchmarks.testbed.namespaces import Name, run
from benchmarks.testbed.spec import MTU, LinkSpec, LinkTraffic, TestbedError

HUB = "hub"
#: Packets of a queue: netem's own default, 1000, is less than 200 us of 25 Gbit/s in small packets.
_QUEUE_PACKETS = 100_000
_BURST_BYTES = 128 << 10  # at least one large segment (64 KiB)
_TBF_QUEUE_BYTES = 64 << 20
_FORWARDING, _DISABLED = 3, 0


def hub_name(names: Sequence[Name]) -> Name:
    """Return the name of the namespace that holds the bridge between the nodes."""
    return Name(owner=names[0].owner, serial=names[0].serial, node=HUB)


def hub_batch(names: Sequence[Name]) -> str:
    """Return what ``ip -batch`` does in the hub: a bridge, and per node a veth pair whose other end is its ``net0``."""
    lines = ["link add bridge type bridge", "link set bridge up"]
    for port, name in enumerate(names):
        lines.append(f"link add port{port} type veth peer name net0 netns {name}")
        lines.append(f"link set port{port} mtu {MTU} master bridge up")
    return "\n".join(lines) + "\n"


def node_shaping(spec: LinkSpec) -> list[str]:
    """Return the arguments of ``tc`` for a node's ``net0``; [] if there is nothing to shape."""
    if not (spec.latency_ns or spec.bits_per_s):
        return []
    rate = ["rate", f"{spec.bits_per_s}bit"] if spec.bits_per_s else []
    delay = ["delay", f"{spec.latency_us:.3f}us"]
    return ["qdisc", "replace", "dev", "net0", "root", "netem", *delay, *rate, "limit", str(_QUEUE_PACKETS)]


def port_shaping(port: int, spec: LinkSpec) -> list[str]:
    """Return the arguments of ``tc`` for the hub's port towards a node; [] if there is nothing to shape."""
    if not spec.bits_per_s:
        return []
    limits = ["rate", f"{spec.bits_per_s}bit", "burst", str(_BURST_BYTES), "limit", str(_TBF_QUEUE_BYTES)]
    return ["qdisc", "replace", "dev", f"port{port}", "root", "tbf", *limits]


def counter_batch(names: Sequence[Name], addresses: Sequence[str]) -> str:
    """Return what ``tc -batch`` does in the hub: an action that passes and counts, per directed pair, at its source."""
    lines = [f"qdisc add dev port{port} clsact" for port in range(len(names))]
    for index, (source, destination) in enumerate(permutations(range(len(names)), 2), start=1):
        match = f"u32 match ip dst {addresses[destination]}/32"
        lines.append(f"filter add dev port{source} ingress protocol ip {match} action ok index {index}")
    return "\n".join(lines) + "\n"


def counted(listing: Any, nodes: Sequence[str]) -> dict[tuple[str, str], LinkTraffic]:
    """Return the counters in what ``tc -s -j actions list action gact`` printed."""
    by_index = {action["index"]: action["stats"] for action in _actions(listing)}
    result = {}
    for index, pair in enumerate(permutations(nodes, 2), start=1):
        stats = by_index.get(index, {"packets": 0, "bytes": 0})
        result[pair] = LinkTraffic(packets=stats["packets"], bytes=stats["bytes"], dropped=0)
    return result


def _actions(listing: Any) -> Iterator[dict[str, Any]]:
    """The counted actions, wherever this release of tc nests them."""
    if isinstance(listing, dict):
        if "index" in listing and "stats" in listing:
            yield listing
        else:
            listing = list(listing.values())
    if isinstance(listing, list):
        for item in listing:
            yield from _actions(item)


class NetemLinks:
    """Owns the hub. Its counters count at the source, Ethernet headers included, and know of no loss."""

    name = "netem"

    def __init__(self, names: Sequence[Name], addresses: Sequence[str], spec: LinkSpec) -> None:
        self._names = tuple(names)
        self._hub = hub_name(names)
        self._shaped: set[tuple[Name, str]] = set()
        run(["ip", "netns", "add", str(self._hub)])
        try:
            run(["ip", "-n", str(self._hub), "-batch", "-"], hub_batch(names))
            self._counting = self._count(addresses)
            self.set_link(spec)
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> None:
        """The kernel does the work."""

    def set_link(self, spec: LinkSpec) -> None:
        for port, name in enumerate(self._names):
            for namespace, device, shaping in (
                (name, "net0", node_shaping(spec)),
                (self._hub, f"port{port}", port_shaping(port, spec)),
            ):
                if shaping:
                    run(["tc", "-n", str(namespace), *shaping])
                    self._shaped.add((namespace, device))
                elif (namespace, device) in self._shaped:
                    run(["tc", "-n", str(namespace), "qdisc", "delete", "dev", device, "root"])
                    self._shaped.remove((namespace, device))

    def cut(self, node: str) -> None:
        self._set_state(node, _DISABLED)

    def heal(self, node: str) -> None:
        self._set_state(node, _FORWARDING)

    def traffic(self) -> dict[tuple[str, str], LinkTraffic]:
        if not self._counting:
            raise TestbedError("this kernel cannot count per pair of nodes (it lacks tc's u32 filter or gact action)")
        listing = run(["tc", "-n", str(self._hub), "-s", "-j", "actions", "list", "action", "gact"])
        return counted(json.loads(listing), [name.node for name in self._names])

    def close(self) -> None:
        """Remove the hub and with it every node's link. May be called twice."""
        namespaces.remove([self._hub])

    def _set_state(self, node: str, state: int) -> None:
        """A disabled port of a bridge drops what comes and goes, and neither end sees the link go down."""
        port = [name.node for name in self._names].index(node)
        run(["bridge", "-n", str(self._hub), "link", "set", "dev", f"port{port}", "state", str(state)])

    def _count(self, addresses: Sequence[str]) -> bool:
        try:
            run(["tc", "-n", str(self._hub), "-batch", "-"], counter_batch(self._names, addresses))
        except TestbedError:
            return False
        return True
