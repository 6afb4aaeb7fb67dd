"""The placement benchmark's cases: what is compared is made from one half of a trace and judged on the other."""

from __future__ import annotations

from typing import Any

from benchmarks.placement.measure import of_topics, quality, shifts, traces
from benchmarks.placement.report import tables
from benchmarks.scheduling.routing import SHAPES

from janus.core.placing import POLICIES


def test_cases_make_tables() -> None:
    tiny = next(iter(traces(())))
    cases: list[dict[str, Any]] = [
        *quality(tiny, instances=4, slots=0, sizes=[16], draws=2),
        *quality(of_topics(SHAPES[0]), instances=8, slots=27, sizes=[16], draws=2),
    ]
    assert [case["simulated"] for case in cases] == [False, True]
    for case in cases:
        assert set(case["a_max"]) == set(POLICIES)
        assert all(1 <= value <= case["slots"] for value in case["a_max"].values())
        assert case["estimate"] <= case["bound"]
    change = next(shifts(instances=4, slots=4, size=4, draws=2))
    gap = {"found": 1.1, "least": 1.0, "proven": True}
    result = {
        "cases": cases,
        "shifts": [change],
        "gaps": [{"load": gap, "a_max": gap}],
        "commit": "c",
        "date": "d",
        "command": "x",
        "hardware": {"cpu": "y"},
    }
    text = tables(result)
    assert f"| {tiny.routing} " in text
    assert "| deepseek-v2 | 8 " in text
    assert "10.0%" in text
