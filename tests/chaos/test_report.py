"""What many runs show together is held against what the scenario expects, figure by figure."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from janus.chaos.figures import Goodput
from janus.chaos.files import parse
from janus.chaos.judge import Verdict
from janus.chaos.moves import Moves
from janus.chaos.report import as_json, lines, summary, unmet
from janus.chaos.run import RunResult, Wrong
from janus.chaos.steps import Done

EXPECTS = """
about = "An expert instance is killed."
[[step]]
at = 1
do = "kill"
target = "expert"
[expect]
client_errors = 2
stall_p99_ms = 500
recovered_s = 3
goodput_dip = 0.5
"""
SCENARIO = parse(EXPECTS, name="mine")
GOOD = RunResult(
    steps=[Done(do="kill", target="expert-1", at=100.0, over=100.0)],
    requests=20,
    in_flight=2,
    lost=0,
    repeated=0,
    changed=0,
    undelivered=0,
    client_errors=0,
    refused=0,
    stalls_s=[0.1, 0.2],
    ttfts_s=[0.05],
    goodput=Goodput(before=100.0, dip=0.2, recovered_s=1.0, bins=[10, 8]),
    recovered_s=1.0,
    whole_s=4.0,
    moves=Moves(moves=[], a_max_before=None, a_max_between=None, a_max_after=None, least_replicas=1),
)


def spoiled(**fields: Any) -> RunResult:
    return dataclasses.replace(GOOD, **fields)


def test_figures_are_those_of_all_runs() -> None:
    found = summary([GOOD, spoiled(lost=3, stalls_s=[0.4, 0.3], recovered_s=2.0, whole_s=6.0)])
    assert (found["runs"], found["requests"], found["lost"], found["in_flight"]) == (2, 40, 3, 4)
    assert (found["stall_p50_ms"], found["stall_p99_ms"]) == (200.0, 400.0)
    assert (found["recovered_s"], found["recovered_max_s"], found["goodput_dip"]) == (1.0, 2.0, 0.2)


def test_what_is_as_expected_has_nothing_unmet() -> None:
    assert unmet(SCENARIO, [GOOD, spoiled(client_errors=2)]) == []


@pytest.mark.parametrize(
    ("run", "problem"),
    [
        (spoiled(lost=3), "lost is up to 3 in 1 of 2 runs, at most 0 expected"),
        (spoiled(repeated=1), "repeated is up to 1 in 1 of 2 runs, at most 0 expected"),
        (spoiled(changed=1), "changed is up to 1 in 1 of 2 runs, at most 0 expected"),
        (spoiled(client_errors=3), "client_errors is up to 3 in 1 of 2 runs, at most 2 expected"),
        (spoiled(client_errors=1, refused=1), "refused is up to 1 in 1 of 2 runs, at most 0 expected"),
        (spoiled(stalls_s=[0.6]), "stall_p99_ms is 600, at most 500 expected"),
        (spoiled(recovered_s=None), "1 of 2 runs did not recover while the load was on"),
        (
            spoiled(goodput=Goodput(before=100.0, dip=0.9, recovered_s=1.0, bins=[])),
            "goodput_dip is 0.55, at most 0.5 expected",
        ),
    ],
)
def test_what_is_not_as_expected_is_said(run: RunResult, problem: str) -> None:
    assert unmet(SCENARIO, [GOOD, run]) == [problem]
    assert f"  unmet     {problem}" in lines(SCENARIO, [GOOD, run])


def test_a_report_names_the_answers_that_are_wrong() -> None:
    wrong = Wrong(prompt="And it came to pass", error="", verdict=Verdict(changed=2, first=17))
    each = as_json(SCENARIO, [spoiled(changed=2, wrong=[wrong])], seed=4)["each"]
    assert each[0]["wrong"] == [
        {"prompt": "And it came to pass", "error": "", "lost": 0, "repeated": 0, "changed": 2, "first": 17}
    ]
    assert each[0]["steps"] == [{"do": "kill", "target": "expert-1", "at": 0.0, "for": 0.0}]
