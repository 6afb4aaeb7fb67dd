"""A testbed as it is: latency, rate, counters, cuts, and programs in its nodes."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from benchmarks.testbed import LinkSpec, LinkTraffic, Testbed, TestbedError
from benchmarks.testbed.links import SIZES, round_trips

pytestmark = pytest.mark.alone

# A message of argv[3] bytes to argv[1]:argv[2], and its echo.
ECHO = """
import socket, sys
size = int(sys.argv[3])
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5) as sock:
    sock.sendall(bytes(size))
    while size:
        size -= len(sock.recv(1 << 20))
"""
SERVE = """
import socket
with socket.create_server(("0.0.0.0", 0)) as listener:
    print(listener.getsockname()[1], flush=True)
    while True:
        sock, _ = listener.accept()
        with sock:
            while data := sock.recv(1 << 20):
                sock.sendall(data)
"""
# Sends argv[3] bytes, or swallows them; either ends when all have arrived.
SEND = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5) as sock:
    sock.sendall(bytes(int(sys.argv[3])))
    sock.shutdown(socket.SHUT_WR)
    sock.recv(1)
"""
SWALLOW = """
import socket
with socket.create_server(("0.0.0.0", 0)) as listener:
    print(listener.getsockname()[1], flush=True)
    sock, _ = listener.accept()
    with sock:
        while sock.recv(1 << 20):
            pass
"""
PYTHON = [sys.executable, "-I", "-S", "-c"]
#: A busy machine adds to any one measurement; the link itself has to be right in the best of a few.
ATTEMPTS = 5
Send = Callable[[str, str, int], None]


@pytest.fixture
def send(bed: Testbed) -> Send:
    """Start an echo server on every node; return what sends bytes from one node to another and back."""
    servers = {node: bed.popen(node, [*PYTHON, SERVE], stdout=subprocess.PIPE, text=True) for node in bed.nodes}
    ports = {}
    for node, server in servers.items():
        with server.stdout as out:
            ports[node] = out.readline().strip()

    def run(source: str, destination: str, nbytes: int) -> None:
        argv = [*bed.exec_prefix(source), *PYTHON, ECHO, bed.address(destination), ports[destination], str(nbytes)]
        subprocess.run(argv, check=True, timeout=10)

    return run


@pytest.mark.parametrize(("latency_us", "rate_gbit"), [(200, 0.5), (50, 1)])
def test_round_trip_and_rate_are_as_set(bed: Testbed, latency_us: float, rate_gbit: float) -> None:
    seen = []
    for _ in range(ATTEMPTS):
        # What a round trip takes without any latency is the machine's, and more when it is busy or slow.
        bed.set_link(LinkSpec(latency_us=1, rate_gbit=rate_gbit))
        bare_us = bed.measured(rounds=200, seconds=0.1).rtt_p50_us
        bed.set_link(LinkSpec(latency_us=latency_us, rate_gbit=rate_gbit))
        measured = bed.measured(rounds=200, seconds=0.1)
        seen.append(measured)
        assert measured.rtt_p50_us >= 2 * latency_us
        assert measured.gbit_per_s <= rate_gbit * 1.02
        if measured.rtt_p50_us <= 2 * latency_us + max(150, 2 * bare_us) and measured.gbit_per_s >= 0.85 * rate_gbit:
            return
    pytest.fail(f"set {latency_us} us, {rate_gbit} Gbit/s; measured {seen}")


def test_a_link_over_ucx_crosses_nodes_without_further_settings(bed: Testbed) -> None:
    bed.set_link(LinkSpec(latency_us=200, rate_gbit=10))
    before = bed.traffic()["a0", "a1"]
    measured = round_trips(bed, "link-ucx", rounds=10)
    sent = bed.traffic()["a0", "a1"] - before
    assert all(measured[str(size)]["p50"] >= 2 * (200 + size * 8e-3 / 10) for size in SIZES)
    assert sent.bytes >= 10 * sum(SIZES)


def test_bytes_are_counted_where_they_went(bed: Testbed, send: Send) -> None:
    bed.set_link(LinkSpec(latency_us=50, rate_gbit=10))
    before = bed.traffic()
    send("a0", "e0", 1_000_000)
    send("a1", "e0", 2_000_000)
    grown = {pair: after - before[pair] for pair, after in bed.traffic().items()}
    for pair, nbytes in {("a0", "e0"): 1e6, ("e0", "a0"): 1e6, ("a1", "e0"): 2e6, ("e0", "a1"): 2e6}.items():
        # 52 bytes of headers on each 8948, and acknowledgements of the other direction
        assert nbytes * 1.005 < grown[pair].bytes < nbytes * 1.05, pair
        assert nbytes / 8948 <= grown[pair].packets < 2 * nbytes / 8948 + 20, pair
    assert grown["a0", "a1"] == grown["a1", "a0"] == LinkTraffic()


def test_inside_a_node_the_network_is_the_loopback_and_nothing_is_counted(bed: Testbed, send: Send) -> None:
    before = bed.traffic()
    send("a0", "a0", 1_000_000)
    assert bed.traffic() == before


@pytest.mark.parametrize("pairs", [(("a0", "e0"), ("a1", "e0")), (("a0", "e0"), ("a0", "a1"))], ids=["in", "out"])
def test_flows_that_meet_at_a_node_share_its_rate(bed: Testbed, pairs: tuple[tuple[str, str], ...]) -> None:
    bed.set_link(LinkSpec(latency_us=50, rate_gbit=1))
    ports = []
    for _, destination in pairs:
        server = bed.popen(destination, [*PYTHON, SWALLOW], stdout=subprocess.PIPE, text=True)
        with server.stdout as out:
            ports.append(out.readline().strip())
    start = time.perf_counter()
    nbytes = 12_500_000  # 100 ms at 1 Gbit/s
    clients = [
        bed.popen(source, [*PYTHON, SEND, bed.address(destination), port, str(nbytes)])
        for (source, destination), port in zip(pairs, ports, strict=True)
    ]
    assert [client.wait(10) for client in clients] == [0, 0]
    assert time.perf_counter() - start >= 0.2


def test_a_node_that_is_cut_off_hears_nothing_and_is_heard_by_nobody_until_it_is_healed(
    bed: Testbed, send: Send
) -> None:
    bed.cut("e0")
    try:
        before = bed.traffic()
        for source, destination in (("a0", "e0"), ("e0", "a0")):
            code = "import socket, sys; socket.create_connection((sys.argv[1], 9), timeout=0.1)"
            done = subprocess.run(
                [*bed.exec_prefix(source), *PYTHON, code, bed.address(destination)], capture_output=True, check=False
            )
            assert b"TimeoutError" in done.stderr  # a port that nobody listens on would refuse at once
            grown = bed.traffic()[source, destination] - before[source, destination]
            assert grown.packets == 0
        send("a0", "a1", 1000)  # the others go on
    finally:
        bed.heal("e0")
    send("a0", "e0", 1000)


def test_memory_and_files_are_shared_and_abstract_sockets_are_not(bed: Testbed, tmp_path: Path) -> None:
    name = f"\0janus-test-{tmp_path.name}-{id(tmp_path)}"
    code = (
        "import os, socket, sys; open(sys.argv[1], 'w').write(str(os.listdir('/sys/class/net')))\n"
        "socket.socket(socket.AF_UNIX).bind('\\0' + sys.argv[2])"
    )
    with socket.socket(socket.AF_UNIX) as here:
        here.bind(name)
        for node in bed.nodes[:2]:
            argv = [*bed.exec_prefix(node), *PYTHON, code, str(tmp_path / node), name[1:]]
            subprocess.run(argv, check=True, timeout=10)
            assert "net0" in (tmp_path / node).read_text()


def test_what_runs_in_a_node_ends_with_the_testbed_whoever_started_it(permitted: None) -> None:
    with Testbed(("a0", "e0")) as bed:
        polite = bed.popen("a0", ["sleep", "60"])
        stubborn = bed.popen("a0", [*PYTHON, "import signal; signal.sigwait([signal.SIGTERM]); signal.pause()"])
        stranger = subprocess.Popen([*bed.exec_prefix("e0"), "sleep", "60"])
    assert polite.returncode == -signal.SIGTERM
    assert stubborn.returncode in (-signal.SIGTERM, -signal.SIGKILL)
    assert stranger.wait(5) == -signal.SIGKILL


def test_a_switch_that_has_died_is_an_error_by_name(permitted: None) -> None:
    with Testbed(("a0", "e0"), backend="emulated") as bed:
        assert bed.switch_pid is not None
        subprocess.run(["kill", "-9", str(bed.switch_pid)], check=True)
        with pytest.raises(TestbedError, match="the switch has ended: exit status -9"):
            bed.traffic()


def test_bridged_links_carry_and_cut(permitted: None) -> None:
    """The bridge below netem, which works where netem itself is missing."""
    with Testbed(("a0", "e0"), LinkSpec(latency_us=0, rate_gbit=0), backend="netem") as bed:
        bed.measured(rounds=10, seconds=0.01)
        bed.cut("e0")
        refused = [*PYTHON, "import socket, sys; socket.create_connection((sys.argv[1], 9), timeout=0.1)"]
        argv = [*bed.exec_prefix("a0"), *refused, bed.address("e0")]
        assert b"TimeoutError" in subprocess.run(argv, capture_output=True, check=False).stderr
        bed.heal("e0")
        assert b"ConnectionRefusedError" in subprocess.run(argv, capture_output=True, check=False).stderr


def test_two_testbeds_at_once_do_not_meet(bed: Testbed) -> None:
    with Testbed(("a0", "a1")) as other:
        before = bed.traffic()
        other.measured(rounds=10, seconds=0.01)
        assert bed.traffic() == before
        assert other.traffic()["a0", "a1"].bytes > 10 * 64
