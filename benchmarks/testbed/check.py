"""What ``make testbed`` does: bring a testbed up, measure it, see that it counts and cuts, take it down."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

from benchmarks.testbed import namespaces
from benchmarks.testbed.bed import Testbed
from benchmarks.testbed.spec import LinkSpec, TestbedError
from benchmarks.testbed.support import Backend

NODES = ("a0", "a1", "e0", "e1")
_SETTINGS = (LinkSpec(latency_us=200, rate_gbit=1), LinkSpec(latency_us=50, rate_gbit=10))
#: Connects to argv[1]:argv[2]; exit status 0 if that worked, 3 if nobody answered in time.
_CONNECT = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=0.3).close()
except TimeoutError:
    sys.exit(3)
"""
_LISTEN = """
import socket
listener = socket.create_server(("0.0.0.0", 0))
print(listener.getsockname()[1], flush=True)
while True:
    listener.accept()[0].close()
"""


def check(nodes: tuple[str, ...], say: Callable[[str], None], backend: Backend | None = None) -> None:
    """Run the check and report it line by line.

    Raises:
        TestbedUnavailable: this machine does not permit a testbed.
        TestbedError: something is not as it should be.
    """
    with Testbed(nodes, backend=backend) as bed:
        say(f"up: nodes {', '.join(nodes)}; links: {bed.backend}")
        for spec in _SETTINGS:
            _measure(bed, spec, say)
        _count(bed, say)
        _cut(bed, say)
        gone = [bed.namespace(node) for node in nodes]
    left = [name for name in map(str, namespaces.existing()) if name in gone]
    if left:
        raise TestbedError(f"left behind: {', '.join(left)}")
    say("down: no namespace and no process left")


def _measure(bed: Testbed, spec: LinkSpec, say: Callable[[str], None]) -> None:
    bed.set_link(spec)
    measured = bed.measured()
    say(
        f"set {spec}: measured RTT p50 {measured.rtt_p50_us:.0f} us, p99 {measured.rtt_p99_us:.0f} us, "
        f"{measured.gbit_per_s:.2f} Gbit/s (plain TCP)"
    )
    if measured.rtt_p50_us < 2 * spec.latency_us:
        raise TestbedError(f"a round trip took {measured.rtt_p50_us:.0f} us, less than twice {spec.latency_us:g} us")
    if measured.gbit_per_s > 1.05 * spec.rate_gbit:
        raise TestbedError(f"{measured.gbit_per_s:.2f} Gbit/s crossed a link of {spec.rate_gbit:g} Gbit/s")


def _count(bed: Testbed, say: Callable[[str], None]) -> None:
    try:
        used = {pair: traffic for pair, traffic in bed.traffic().items() if traffic.packets}
    except TestbedError as error:
        say(f"traffic: {error}")
        return
    expected = {(bed.nodes[0], bed.nodes[1]), (bed.nodes[1], bed.nodes[0])}
    if set(used) != expected:
        raise TestbedError(f"traffic was counted between {sorted(used)}, and measured between {sorted(expected)}")
    for (source, destination), traffic in used.items():
        say(f"traffic {source} -> {destination}: {traffic.packets} packets, {traffic.bytes / 1e6:.1f} MB")


def _cut(bed: Testbed, say: Callable[[str], None]) -> None:
    first, last = bed.nodes[0], bed.nodes[-1]
    server = bed.popen(last, [sys.executable, "-I", "-S", "-c", _LISTEN], stdout=subprocess.PIPE, text=True)
    port = server.stdout.readline().strip() if server.stdout else ""

    def connects() -> bool:
        client = bed.popen(first, [sys.executable, "-I", "-S", "-c", _CONNECT, bed.address(last), port])
        status = client.wait(10)
        if status not in (0, 3):
            raise TestbedError(f"{first} cannot try to reach {last}: exit status {status}")
        return status == 0

    before = connects()
    bed.cut(last)
    during = connects()
    bed.heal(last)
    after = connects()
    if (before, during, after) != (True, False, True):
        raise TestbedError(f"{first} reaches {last}: before the cut {before}, during it {during}, after it {after}")
    if server.stdout:
        server.stdout.close()
    say(f"cut and heal: {last} is unreachable while it is cut off")
