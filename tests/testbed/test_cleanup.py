"""Nothing is left behind: not by an owner that ends, and not for long by one that is killed."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.testbed import Testbed, held, namespaces
from benchmarks.testbed.__main__ import main
from benchmarks.testbed.namespaces import Name, this_process

pytestmark = pytest.mark.alone

ROOT = Path(__file__).parents[2]
# Brings a testbed up with a program in it that has a child of its own, says so, and waits.
OWNER = """
import sys, signal
from benchmarks.testbed import Testbed
bed = Testbed(("a0", "e0")).__enter__()
bed.popen("e0", ["sh", "-c", "sleep 300 & echo $!; wait"])
signal.pause()
"""


def names_of(pid: int) -> list[Name]:
    return [name for name in namespaces.existing() if name.owner.pid == pid]


def test_a_killed_owner_leaves_what_the_next_testbed_removes(permitted: None) -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    with owner.stdout as out:
        sleeper = int(out.readline())
    left = names_of(owner.pid)
    assert {name.node for name in left} >= {"a0", "e0"}
    assert sleeper in [pid for name in left for pid in namespaces.processes(name)]
    owner.kill()
    owner.wait()
    assert names_of(owner.pid)  # nobody was there to remove them

    with Testbed(("a0", "e0")):
        assert names_of(owner.pid) == []
        assert namespaces.start_time(sleeper) is None  # the grandchild, too


def test_an_owner_that_is_alive_keeps_its_testbed(bed: Testbed) -> None:
    before = names_of(this_process().pid)
    namespaces.reclaim()
    assert names_of(this_process().pid) == before != []


def test_an_error_inside_leaves_nothing(permitted: None) -> None:
    bed = Testbed(("a0", "e0"))
    with pytest.raises(RuntimeError, match="mine"), bed:
        raise RuntimeError("mine")
    assert [name for name in names_of(this_process().pid) if name.serial == bed.serial] == []


def test_a_testbed_that_fails_to_come_up_leaves_nothing(permitted: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.testbed.bed._device_batch", lambda address: "no such command\n")
    bed = Testbed(("a0", "e0"))
    with pytest.raises(namespaces.TestbedError, match="-batch"), bed:
        pass
    assert [name for name in names_of(this_process().pid) if name.serial == bed.serial] == []


def test_a_check_that_is_terminated_leaves_nothing(permitted: None) -> None:
    command = [sys.executable, "-m", "benchmarks.testbed", "check"]
    check = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    with check.stdout as out:
        assert out.readline().startswith("testbed: up: nodes a0, a1, e0, e1")
        assert names_of(check.pid)
        check.terminate()
    assert check.wait(10) == 128 + signal.SIGTERM
    assert names_of(check.pid) == []


def test_where_it_is_not_possible_the_check_says_so_in_one_line_and_succeeds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchmarks.testbed.__main__.unavailable", lambda: "needs root")
    assert main(["check"]) == 0
    assert capsys.readouterr().out == "testbed: not possible here: needs root\n"
    assert main(["up"]) == 1


def test_up_exec_down(permitted: None, capfd: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "-m", "benchmarks.testbed"]
    if held.holders():
        pytest.skip("somebody has a testbed up on this machine, which `down` would take down, too")
    subprocess.run([*command, "up", "--nodes", "a0", "e0"], cwd=ROOT, check=True, timeout=20)
    try:
        inside = subprocess.run(
            [*command, "exec", "e0", "--", "ip", "-br", "address"],
            cwd=ROOT,
            check=True,
            timeout=20,
            capture_output=True,
            text=True,
        )
        assert "198.18.0.2/24" in inside.stdout
    finally:
        down = subprocess.run([*command, "down"], cwd=ROOT, check=True, timeout=20, capture_output=True, text=True)
    assert "down: a0, e0" in down.stdout
