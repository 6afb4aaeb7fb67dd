"""What the exchange benchmark makes of its turns: ratios, the result file, the tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from benchmarks.exchange.ladder import tables as ladder_tables
from benchmarks.exchange.ratios import FORCED, ratios
from benchmarks.exchange.record import KEYS, climbed, overheads, swept, update
from benchmarks.exchange.report import tables
from benchmarks.exchange.sweep import summary


def turns(*us: float, apart: tuple[float, ...] = (), frames: float = 4.0) -> dict[str, Any]:
    """Turns of one way, as the sweep sums them up."""
    taken = []
    for number, each in enumerate(us):
        turn = {"us": each, "frames_per_layer": frames, "bytes_per_layer": 1e6, "unsettled": 0}
        taken.append(turn | ({"us_apart": apart[number]} if number < len(apart) else {}))
    return summary(taken)


def cell(*, tokens: int = 1, auto: tuple[float, ...] = (101.0, 205.0, 303.0), **more: Any) -> dict[str, Any]:
    """Three rounds, in which the machine becomes slower and slower: two phases take half of direct in each."""
    return {
        "attention": 4,
        "experts": 4,
        "hidden": 2048,
        "tokens": tokens,
        "latency_us": 50.0,
        "rate_gbit": 10.0,
        "settled": {"layers": 96, "all_tried": tokens == 1},
        "ways": {
            "attention/direct": turns(200.0, 400.0, 600.0, apart=(90.0, 180.0), frames=16.0),
            "attention/aggregated": turns(160.0, 320.0, 480.0, apart=(100.0, 200.0), frames=8.0),
            "attention/two-phase": turns(100.0, 200.0, 300.0, apart=(120.0, 240.0)),
            "attention/auto": turns(*auto, apart=(99.0, 198.0)),
            "expert/direct": turns(250.0),
            "expert/two-phase": turns(150.0),
        },
        **more,
    }


FIGURES = [
    {"stack": stack, "bytes": nbytes, "trip_us": turns_us[0], "turns_us": turns_us}
    for stack, nbytes, turns_us in (
        ("link-ucx", 64, [30.0, 60.0, 31.0]),
        ("ucxx", 64, [20.0, 45.0, 19.0]),
        ("socket", 64, [8.0, 9.0, 8.0]),
        ("link-ucx", 64 << 10, [60.0, 120.0, 55.0]),
        ("ucxx", 64 << 10, [50.0, 100.0, 50.0]),
        ("ucxx-probe", 64 << 10, [60.0, 110.0, 55.0]),
        ("link-tcp", 64, [1.0, 1.0, 1.0]),
    )
]
LADDER = {
    "command": "python -m benchmarks.exchange.ladder",
    "commit": "abc",
    "date": "today",
    "hardware": {"cpu": "some", "cores_used": 2},
    "instances": [4, 4],
    "slots_per_instance": 6,
    "latency_us": 50.0,
    "rate_gbit": 10.0,
    "steps": {
        "1PC + AGate": {"16": {"tpot_ms": 22.5, "tpot_ms_each": [22.5], "tokens_per_s": 600.0}},
        "2PC + AGate": {"16": {"tpot_ms": 21.5, "tpot_ms_each": [21.5], "tokens_per_s": 650.0}},
    },
}
RUN = {
    "command": "python -m benchmarks.exchange",
    "hardware": {"cpu": "some", "cores_used": 2},
    "commit": "abc",
    "date": "today",
    "sweep": {"networks": [[50.0, 10.0]]},
    "transport": {"figures": FIGURES},
}


def test_ratios_are_taken_round_by_round() -> None:
    shown = ratios(cell())
    assert shown["two_phase_speedup"] == 2.0, "the machine's own slowness is in both"
    assert shown["auto_over_best"] == pytest.approx(1.01)
    apart = ratios(cell(), "us_apart")
    assert apart == {"two_phase_speedup": 0.75, "auto_over_best": 1.1}


def test_a_way_that_was_lucky_once_is_not_the_best() -> None:
    lucky = cell(auto=(100.0, 200.0, 300.0))
    lucky["ways"]["attention/direct"]["us_each"] = [200.0, 50.0, 600.0]
    assert ratios(lucky)["auto_over_best"] == 1.0


def test_overheads_are_microseconds_for_small_and_ratios_for_large_frames() -> None:
    assert overheads(FIGURES) == {"64": 12.0, "65536": 1.2}
    assert overheads(FIGURES, "ucxx-probe") == {"65536": 1.0}


def test_the_sweep_and_the_ladder_fill_the_keys_in_any_order(tmp_path: Path) -> None:
    cells = [cell(), cell(tokens=16, auto=(150.0, 300.0, 450.0))]
    sweep = {**swept(cells, FIGURES), **RUN, "cells": cells}
    files: list[dict[str, Any]] = []
    for order in ((climbed(LADDER) | {"ladder": LADDER}, sweep), (sweep, climbed(LADDER) | {"ladder": LADDER})):
        path = tmp_path / f"{len(files)}.json"
        for found in order:
            update(path, found)
        files.append(json.loads(path.read_text()))
    assert files[0] == files[1]
    result = files[0]
    assert list(result)[: len(KEYS)] == list(KEYS)
    name = "50 us, 10 Gbit/s, 4x4, H 2048, {} tokens"
    assert result["speedup_two_phase"] == {name.format(1): 2.0, name.format(16): 2.0}
    assert result["auto_worst_regret"] == 0.5
    assert result["auto_regret"]["together"] == {
        "worst": 0.5,
        "worst_in": name.format(16),
        "median": 0.255,
        "cells": 2,
        "cells_within_10_percent": 1,
    }
    assert result["auto_regret"]["apart"]["worst"] == 0.1
    assert result["overhead_vs_ucxx"] == {"64": 12.0, "65536": 1.2}
    assert result["fig12"] == {"1PC + AGate": {"16": 22.5}, "2PC + AGate": {"16": 21.5}}
    assert result["messages_per_layer"]["4x4, H 2048, 1 tokens"] == dict(zip(FORCED, (16.0, 8.0, 4.0), strict=True))
    for key in KEYS:
        assert result[key], key


def test_what_has_not_run_is_said_to_be_missing(tmp_path: Path) -> None:
    result = update(tmp_path / "result.json", {**swept([cell()], FIGURES), **RUN})
    assert result["fig12"] is None
    assert result["speedup_two_phase"]


def test_the_tables_have_every_cell_and_every_size() -> None:
    cells = [cell(), cell(tokens=16)]
    for way in cells[1]["ways"].values():
        way.pop("us_apart_each", None)
    text = tables({**swept(cells, FIGURES), **RUN, "cells": cells})
    rows = [[part.strip() for part in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| 4x4")]
    assert rows[0] == ["4x4", "2048", "1", "400", "320", "200", "205", "250", "150", "2.00", "0.75", "1.01", "96"]
    assert rows[1][-3:] == ["-", "1.01", "-"]
    assert rows[2][:6] == ["4x4", "2048", "1", "16.0", "8.0", "4.0"]
    links = [[part.strip() for part in line.split("|")[1:-1]] for line in text.splitlines() if "64 " in line[:9]]
    assert ["64 B", "30 us", "20 us", "-", "8 us", "+12 us", "-", "30 us"] in links
    assert ["64 KiB", "60 us", "50 us", "60 us", "-", "1.20x", "1.00x", "1.3x"] in links
    assert "22.5 ms" in ladder_tables(LADDER)
