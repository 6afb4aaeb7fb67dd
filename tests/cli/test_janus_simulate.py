"""``janus simulate``: figures for people and programs, the same every time; refusals that name the option."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from janus.errors import ConfigError
from janus_cli.plan import RoutingOptions
from janus_cli.simulate import (
    AutoscaleOptions,
    ClusterOptions,
    LimitOptions,
    SimulateOptions,
    WorkloadOptions,
    simulate,
)

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(
    f"2023-11-16 18:17:{second:02d}.5,{100 + second},{20 + second}\n" for second in range(40)
)


def options(**more: Any) -> SimulateOptions:
    given: dict[str, Any] = {
        "model": "DeepSeek-V2",
        "load": WorkloadOptions(workload="poisson:2,prompt=64,output=32", duration_s=30),
        "cluster": ClusterOptions(attention=1),
        "limits": LimitOptions(),
        "routing": RoutingOptions(draws=1, placement="static"),
        "scaling": AutoscaleOptions(),
    }
    return SimulateOptions(**(given | more))


def run(path: Path, **more: Any) -> dict[str, Any]:
    file = path / "report.json"
    assert simulate(options(json=file, **more)) == 0
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def test_people_get_what_clients_would_have_seen(capsys: pytest.CaptureFixture[str]) -> None:
    faults = ClusterOptions(attention=2, experts=12, fail="expert@10,attention-0@15")
    assert simulate(options(slo_tpot="150ms", cluster=faults)) == 0
    text = capsys.readouterr().out
    assert "simulated: DeepSeek-V2 on 2A12E of H100-80GB, 27 slots; poisson: " in text
    for word in ("TTFT", "TPOT", "p99", "device-hours", "TPG", "of requests within TPOT 150 ms; goodput"):
        assert word in text
    assert "died: attention-0" in text


def test_programs_get_the_same_figures_every_time(tmp_path: Path) -> None:
    first, again = (run(tmp_path, slo_tpot="150ms") for _ in range(2))
    assert first == again
    assert first["outcomes"] == {"finished": first["requests"]}
    assert first["slo_attainment"] == 1.0
    assert run(tmp_path, routing=RoutingOptions(draws=1, placement="static", seed=7)) != first


def test_a_slice_of_a_trace_is_replayed(tmp_path: Path) -> None:
    path = tmp_path / "azure.csv"
    path.write_text(AZURE)
    load = WorkloadOptions(workload=str(path), start_s=10, duration_s=20, rate_scale=2)
    report = run(tmp_path, load=load)
    assert report["requests"] == 20
    assert report["duration_s"] == pytest.approx(10)
    assert report["output_tokens"] == sum(range(30, 50))


def test_the_autoscaler_can_be_let_loose(tmp_path: Path) -> None:
    load = WorkloadOptions(workload="poisson:12,prompt=64,output=64", duration_s=180)
    scaling = AutoscaleOptions(autoscale=True, max_attention=3, max_experts=12, interval_s=20)
    report = run(tmp_path, load=load, scaling=scaling, slo_tpot="60ms")
    assert report["outcomes"]["finished"] == report["requests"]
    assert report["sizes"]
    assert all(size["experts"] >= 6 for size in report["sizes"])
    # Like the controller that is given this profile, it reckons with the profile.
    assert report["scaled_by"] == "h100-80gb"


def test_the_autoscaler_says_what_its_expectations_are_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load = WorkloadOptions(workload="poisson:8,prompt=64,output=64", duration_s=60)
    reports = {}
    for scale_by, words in (("learned", "autoscaled by what it learned"), ("profile", "by profile h100-80gb")):
        scaling = AutoscaleOptions(autoscale=True, max_attention=3, max_experts=12, interval_s=20, scale_by=scale_by)
        reports[scale_by] = run(tmp_path, load=load, scaling=scaling, slo_tpot="60ms")
        assert words in capsys.readouterr().out
    assert reports["learned"]["scaled_by"] == "learned"
    assert run(tmp_path)["scaled_by"] == ""
    assert "autoscaled" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"model": "DeepSeek-V9"}, "no model is known as 'DeepSeek-V9'"),
        ({"hardware": "abacus"}, "neither a file nor a profile"),
        ({"slo_tpot": "fast"}, "--slo-tpot"),
        ({"scaling": AutoscaleOptions(autoscale=True)}, "--autoscale"),
        ({"cluster": ClusterOptions(experts=2)}, "do not hold the 160 experts"),
        ({"cluster": ClusterOptions(fail="everything")}, "--fail"),
        ({"load": WorkloadOptions(workload="tides:3")}, "neither a file nor a kind of workload"),
        ({"json": Path("/nowhere/at/all.json")}, "--json"),
    ],
)
def test_what_cannot_be_simulated_is_named(change: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        simulate(options(**change))


def test_other_systems_run_on_the_same_devices(tmp_path: Path) -> None:
    load = WorkloadOptions(workload="constant:2,prompt=64,output=64,spread=0", duration_s=30)
    clusters = {
        "janus": ClusterOptions(attention=2, experts=6),
        "megascale": ClusterOptions(system="megascale", attention=2, experts=6),
        "xdeepserve": ClusterOptions(system="xdeepserve", attention=4, experts=8),
        "monolithic": ClusterOptions(system="monolithic", attention=1, tensor_parallel=8),
    }
    hours = {}
    for name, chosen in clusters.items():
        report = run(tmp_path, load=load, cluster=chosen)
        assert report["outcomes"] == {"finished": 60}
        hours[name] = round(3600 * sum(report["device_hours"].values()) / 30)
    assert hours == {"janus": 8, "megascale": 8, "xdeepserve": 12, "monolithic": 8}
    with pytest.raises(ConfigError, match="no pools to scale"):
        options(slo_tpot="1s", cluster=clusters["monolithic"], scaling=AutoscaleOptions(autoscale=True))
