"""Several nodes on one machine: in a node processes share loopback and memory, between nodes lies a slower network."""

from __future__ import annotations

import ctypes
import itertools
import signal
import subprocess
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, ClassVar, Protocol, Self

from benchmarks.testbed import measure, namespaces, support
from benchmarks.testbed.emulated import EmulatedLinks
from benchmarks.testbed.namespaces import Name, run
from benchmarks.testbed.netem import NetemLinks
from benchmarks.testbed.spec import MTU, LinkSpec, LinkTraffic, Measured, TestbedError, TestbedUnavailable, check_nodes

#: Of the block that RFC 2544 reserves for benchmarks of networks. Every testbed uses it: none sees another.
NETWORK = "198.18.0"
#: What a node's TCP is set to, so that a figure depends on the link and not on the machine's defaults.
SYSCTLS = {
    "net/ipv4/tcp_congestion_control": "reno",  # the only one that every kernel has and lets a namespace use
    "net/ipv4/tcp_slow_start_after_idle": "0",  # else a pause between two steps costs the next one round trips
    "net/ipv4/tcp_no_metrics_save": "1",  # else a connection starts with what one before it met on another setting
    "net/ipv4/tcp_rmem": "4096 131072 6291456",  # what Linux ships with; many a machine has been tuned
    "net/ipv4/tcp_wmem": "4096 16384 4194304",
    "net/ipv6/conf/all/disable_ipv6": "1",  # else neighbour discovery shows up in the counters
    "net/ipv6/conf/default/disable_ipv6": "1",
}
_NOT_UP = "the testbed is not up: use it in a `with` statement"
_EXIT_TIMEOUT_S = 2.0
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


class Links(Protocol):
    """What joins the nodes; made after their namespaces, it gives each a device ``net0``."""

    name: str

    @property
    def pid(self) -> int | None: ...
    def set_link(self, spec: LinkSpec) -> None: ...
    def cut(self, node: str) -> None: ...
    def heal(self, node: str) -> None: ...
    def traffic(self) -> dict[tuple[str, str], LinkTraffic]: ...
    def close(self) -> None: ...


_LINKS: dict[str, type[EmulatedLinks] | type[NetemLinks]] = {"emulated": EmulatedLinks, "netem": NetemLinks}


class Testbed:
    """Nodes joined by links of one kind; a context manager that leaves nothing behind.

    What a killed owner leaves, the next testbed on the machine removes before it starts.

        with Testbed(("a0", "e0"), LinkSpec(latency_us=50, rate_gbit=10)) as bed:
            server = bed.popen("e0", ["some-server", "--host", bed.address("e0")])
    """

    __test__ = False  # not a test class, whatever its name suggests to pytest
    _serials: ClassVar[itertools.count[int]] = itertools.count(1)

    def __init__(
        self, nodes: Sequence[str], link: LinkSpec | None = None, *, backend: support.Backend | None = None
    ) -> None:
        """Describe a testbed; entering the context brings it up.

        Args:
            nodes: names such as "a0", in the order of their addresses.
            link: latency and rate between any two of them.
            backend: "netem" or "emulated"; None takes netem where the kernel has it.
        """
        self.nodes = check_nodes(nodes)
        self.link = link or LinkSpec()
        self.serial = next(self._serials)
        self._backend = backend
        owner = namespaces.this_process()
        self._names = {node: Name(owner=owner, serial=self.serial, node=node) for node in self.nodes}
        self._links: Links | None = None
        self._children: list[subprocess.Popen[Any]] = []

    def __enter__(self) -> Self:
        """Bring the nodes up.

        Raises:
            TestbedUnavailable: this machine does not permit it.
            TestbedError: it should, but something failed.
        """
        reason = support.unavailable()
        if reason is not None:
            raise TestbedUnavailable(reason)
        namespaces.reclaim()
        try:
            self._bring_up()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _bring_up(self) -> None:
        for name in self._names.values():
            run(["ip", "netns", "add", str(name)])
        addresses = [self.address(node) for node in self.nodes]
        links = _LINKS[self._backend or support.backend()]
        self._links = links(tuple(self._names.values()), addresses, self.link)
        for node, name in self._names.items():
            writes = "; ".join(f"echo {value} > /proc/sys/{key}" for key, value in SYSCTLS.items())
            run(["ip", "netns", "exec", str(name), "sh", "-c", f"set -e; {writes}"])
            run(["ip", "-n", str(name), "-batch", "-"], _device_batch(self.address(node)))

    def close(self) -> None:
        """End what runs in the nodes and remove them. May be called twice."""
        links, self._links = self._links, None
        try:
            self._end_children()
            if links is not None:
                links.close()
        finally:
            namespaces.remove(self._names.values())

    def _end_children(self) -> None:
        children, self._children = self._children, []
        for child in children:
            child.terminate()
        deadline = time.monotonic() + _EXIT_TIMEOUT_S
        for child in children:
            try:
                child.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()

    @property
    def backend(self) -> str:
        """How the links are made: "netem" or "emulated"."""
        return self._up.name

    @property
    def switch_pid(self) -> int | None:
        """Process id of the emulated switch, for its CPU time; None where the kernel does the work."""
        return self._up.pid

    def address(self, node: str) -> str:
        """Return the node's IPv4 address, the same for every testbed of these nodes."""
        return f"{NETWORK}.{self._index(node) + 1}"

    def namespace(self, node: str) -> str:
        """Return the name of the node's network namespace, for ``ip netns``."""
        return str(self._names[self.nodes[self._index(node)]])

    def exec_prefix(self, node: str) -> list[str]:
        """Return what to put before a command line to run it in the node."""
        return ["ip", "netns", "exec", self.namespace(node)]

    def popen(self, node: str, argv: Sequence[str], **kwargs: Any) -> subprocess.Popen[Any]:
        """Start a program in a node; ``kwargs`` are those of ``subprocess.Popen``.

        It is terminated, then killed, with the testbed, and killed if the calling thread or process ends before.
        Its own children end with the testbed, too, or with the next one.
        """
        if self._links is None:
            raise TestbedError(_NOT_UP)
        # Ruff's objection is to Python between fork and exec while other threads hold locks; this takes none.
        child = subprocess.Popen(
            [*self.exec_prefix(node), *argv],
            preexec_fn=_die_with_parent,  # noqa: PLW1509
            **kwargs,
        )
        self._children.append(child)
        return child

    def traffic(self) -> dict[tuple[str, str], LinkTraffic]:
        """Return what every node has sent to every other, by (source, destination)."""
        return self._up.traffic()

    def set_link(self, link: LinkSpec) -> None:
        """Change latency and rate of all links, for what is sent from now on."""
        self._up.set_link(link)
        self.link = link

    def cut(self, node: str) -> None:
        """Drop everything to and from a node, in silence, as a failed switch port does."""
        self._index(node)
        self._up.cut(node)

    def heal(self, node: str) -> None:
        """Undo ``cut``."""
        self._index(node)
        self._up.heal(node)

    def measured(
        self, source: str | None = None, destination: str | None = None, *, rounds: int = 300, seconds: float = 0.3
    ) -> Measured:
        """Return round trip and rate of blocking TCP sockets between two nodes (the first two if not named)."""
        ends = source or self.nodes[0], destination or self.nodes[1]
        prefixes = self.exec_prefix(ends[0]), self.exec_prefix(ends[1])
        return measure.between(*prefixes, self.address(ends[1]), rounds=rounds, seconds=seconds)

    @property
    def _up(self) -> Links:
        if self._links is None:
            raise TestbedError(_NOT_UP)
        return self._links

    def _index(self, node: str) -> int:
        if node not in self.nodes:
            raise ValueError(f"node {node!r} is none of this testbed's: {', '.join(self.nodes)}")
        return self.nodes.index(node)


def _device_batch(address: str) -> str:
    return (
        "link set lo up\n"
        f"link set net0 mtu {MTU} txqueuelen 10000\n"
        f"address add {address}/24 dev net0\n"
        "link set net0 up\n"
    )


def _die_with_parent() -> None:
    """Runs in the child between fork and exec."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
