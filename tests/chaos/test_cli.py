"""`janus chaos` on a command line: what it lists, and how it says what is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from janus.chaos.files import shipped
from janus.chaos.scenario import ClusterNeeds


def janus(*arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    environ = {"PATH": os.environ["PATH"], "HOME": str(home)}
    command = [sys.executable, "-m", "janus_cli", "chaos", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environ)


def test_every_scenario_is_listed(tmp_path: Path) -> None:
    listed = janus("list", home=tmp_path)
    assert listed.returncode == 0, listed.stderr
    assert [line.split()[0] for line in listed.stdout.splitlines()] == list(shipped())
    assert "expert-cut" in listed.stdout
    assert "(needs the testbed)" in listed.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "error: SCENARIO: is missing; give a file, or a name that janus chaos list shows"),
        (("expert-kil",), "error: SCENARIO: 'expert-kil' is neither a file nor a scenario; did you mean expert-kill"),
        (("expert-kill", "--repeat", "0"), "error: --repeat: 0 is out of range; use at least 1 runs"),
        (("expert-kill", "--name", "nobody"), "error: --name: no cluster 'nobody' is running; "),
    ],
)
def test_what_is_wrong_is_one_line_and_status_2(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    result = janus("run", *arguments, home=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(message)
    assert result.stderr.count("\n") == 1


def test_a_scenario_that_cuts_a_network_is_skipped_by_name(tmp_path: Path) -> None:
    result = janus("run", "expert-cut", home=tmp_path)
    assert result.returncode == 0
    assert "expert-cut skipped: it cuts network links and needs the testbed" in result.stderr


def test_scenarios_of_the_same_cluster_are_run_together() -> None:
    from benchmarks.chaos.campaign import _grouped

    from janus.chaos.files import parse

    text = 'about = "x"\n[cluster]\nexperts = {}\n[[step]]\nat = 1\ndo = "kill"\ntarget = "expert"\n'
    scenarios = [parse(text.format(experts), name=name) for name, experts in (("a", 2), ("b", 3), ("c", 2))]
    groups = [(needs, [each.name for each in group]) for needs, group in _grouped(scenarios)]
    assert groups == [(ClusterNeeds(experts=2), ["a", "c"]), (ClusterNeeds(experts=3), ["b"])]
