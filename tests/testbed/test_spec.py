"""What a testbed may be asked for, and the names of its namespaces."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.testbed import LinkSpec, LinkTraffic, Testbed, TestbedError, netem, support
from benchmarks.testbed.accuracy import tables
from benchmarks.testbed.measure import summary
from benchmarks.testbed.namespaces import Name, Owner, parse, start_time, this_process
from benchmarks.testbed.spec import check_nodes
from hypothesis import given
from hypothesis import strategies as st

NAMES = [Name(owner=Owner(pid=7, start=99), serial=2, node=node) for node in ("a0", "e0")]


@pytest.mark.parametrize(
    ("latency_us", "rate_gbit", "field"), [(-1, 1, "latency_us"), (2e6, 1, "latency_us"), (1, -1, "rate_gbit")]
)
def test_a_link_that_cannot_be_is_refused_by_the_name_of_its_field(
    latency_us: float, rate_gbit: float, field: str
) -> None:
    with pytest.raises(ValueError, match=field):
        LinkSpec(latency_us=latency_us, rate_gbit=rate_gbit)


@pytest.mark.parametrize("nodes", [("a0",), ("a0", "a0"), ("a0", "E0"), ("a0", "../x"), ("a0", "a-b"), ("",) * 2])
def test_nodes_that_cannot_be_are_refused(nodes: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="nodes"):
        check_nodes(nodes)


def test_a_testbed_that_is_not_up_says_so_and_knows_its_addresses() -> None:
    bed = Testbed(("a0", "e0"))
    assert (bed.address("a0"), bed.address("e0")) == ("198.18.0.1", "198.18.0.2")
    with pytest.raises(TestbedError, match="not up"):
        bed.traffic()
    with pytest.raises(ValueError, match="'x9' is none of this testbed's: a0, e0"):
        bed.address("x9")


@given(
    st.integers(1, 1 << 22),
    st.integers(0, 1 << 62),
    st.integers(0, 999),
    st.from_regex("[a-z][a-z0-9]{0,14}", fullmatch=True),
)
def test_a_namespace_tells_its_owner(pid: int, start: int, serial: int, node: str) -> None:
    name = Name(owner=Owner(pid=pid, start=start), serial=serial, node=node)
    assert parse(str(name)) == name


@pytest.mark.parametrize("text", ["janus", "janus-1-2-3", "janus-1-2-3-", "xjanus-1-2-3-a0", "janus-1-2-3-a0-b"])
def test_namespaces_of_others_are_not_ours(text: str) -> None:
    assert parse(text) is None


def test_a_process_id_that_is_used_again_is_not_the_owner() -> None:
    me = this_process()
    assert me.alive()
    assert not Owner(pid=me.pid, start=me.start - 1).alive()


def test_a_dead_process_that_nobody_has_waited_for_owns_nothing() -> None:
    child = subprocess.Popen([sys.executable, "-I", "-S", "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert start_time(child.pid) is None
    child.wait()


def test_traffic_since_an_earlier_count() -> None:
    earlier, later = LinkTraffic(packets=1, bytes=100, dropped=0), LinkTraffic(packets=4, bytes=1000, dropped=2)
    assert later - earlier == LinkTraffic(packets=3, bytes=900, dropped=2)


def test_the_figures_of_a_measurement() -> None:
    measured = summary({"rtt_us": [float(i) for i in range(200, 0, -1)], "bytes": 125_000_000, "seconds": 0.5})
    assert (measured.rtt_p50_us, measured.rtt_p99_us, measured.gbit_per_s) == (100.5, 199.0, 2.0)


def test_netem_gets_delay_and_rate_at_the_source_and_the_rate_again_at_the_destination() -> None:
    spec = LinkSpec(latency_us=50, rate_gbit=2.5)
    assert " ".join(netem.node_shaping(spec)).startswith(
        "qdisc replace dev net0 root netem delay 50.000us rate 2500000000bit limit "
    )
    assert " ".join(netem.port_shaping(3, spec)).startswith("qdisc replace dev port3 root tbf rate 2500000000bit ")


def test_netem_has_nothing_to_do_on_a_link_without_latency_and_limit() -> None:
    spec = LinkSpec(latency_us=0, rate_gbit=0)
    assert netem.node_shaping(spec) == netem.port_shaping(0, spec) == []
    assert "rate" not in netem.node_shaping(LinkSpec(latency_us=1, rate_gbit=0))


def test_every_directed_pair_has_a_counter_and_each_is_found_again() -> None:
    batch = netem.counter_batch(NAMES, ["198.18.0.1", "198.18.0.2"]).splitlines()
    assert "filter add dev port1 ingress protocol ip u32 match ip dst 198.18.0.1/32 action ok index 2" in batch
    stats = [{"index": index, "stats": {"packets": index, "bytes": 100 * index}} for index in (2, 1)]
    listing = [{"total acts": 2}, {"actions": stats}]
    assert netem.counted(listing, ["a0", "e0"]) == {
        ("a0", "e0"): LinkTraffic(packets=1, bytes=100, dropped=0),
        ("e0", "a0"): LinkTraffic(packets=2, bytes=200, dropped=0),
    }


def test_without_iproute2_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support.shutil, "which", lambda _: None)
    assert "apt-get install iproute2" in (support._missing() or "")


def test_without_root_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(support.shutil, "which", lambda name: f"/sbin/{name}")
    assert "needs root" in (support._missing() or "")


def test_the_document_says_what_was_recorded() -> None:
    root = Path(__file__).parents[2]
    recorded = json.loads((root / "benchmarks" / "results" / "testbed.json").read_text())
    assert tables(recorded) in (root / "docs" / "testbed.md").read_text()
