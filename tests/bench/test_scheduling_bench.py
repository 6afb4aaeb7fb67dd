"""The scheduling benchmark: its result, its second way to the optimum, and the document that shows them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.markdown import write_into
from benchmarks.scheduling.__main__ import main
from benchmarks.scheduling.figures import figures
from benchmarks.scheduling.layer_time import modelled
from benchmarks.scheduling.optimum import least_a_max, least_imbalance
from benchmarks.scheduling.quality import POLICIES, Effort, NotOptimalError, measure
from benchmarks.scheduling.report import tables
from benchmarks.scheduling.routing import SHAPES, Shape, Trace, pack, slots, synthetic, unpack

from janus.core.scheduling import Assignment


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What ``--quick`` writes."""
    output = tmp_path_factory.mktemp("scheduling") / "deep" / "scheduling.json"
    assert main(["--quick", "--output", str(output)]) == 0
    found: dict[str, Any] = json.loads(output.read_text())
    return found


def test_the_result_says_what_was_measured_and_where(result: dict[str, Any]) -> None:
    wanted = ("cases", "optimal_share", "imbalance_mean", "cpu_us", "gpu_us", "command", "hardware", "commit", "date")
    assert not [key for key in wanted if key not in result]
    assert result["gpu_us"] is None
    assert "--quick" in result["command"]
    assert result["launches"] == sum(case["draws"] for case in result["cases"])
    assert 0 < result["checked"] < result["launches"]


def test_aebs_reaches_the_optimum_in_every_launch_and_nobody_beats_it(result: dict[str, Any]) -> None:
    assert result["optimal_share"]["aebs"] == 1.0
    assert result["proven_share"] == 1.0
    for case in result["cases"]:
        assert case["a_max"]["aebs"] == case["optimum"]
        assert all(case["a_max"][policy] >= case["optimum"] for policy in POLICIES)
        assert all(
            (case["a_max"][policy] == case["optimum"]) == (case["optimal_share"][policy] == 1) for policy in POLICIES
        )
        assert case["optimum"] * case["instances"] >= case["activated"]
        assert case["token_imbalance"]["token-balanced"] >= 1
    assert result["optimal_share"]["static"] < 1, "the cases are too easy to tell policies apart"


def test_imbalance_is_given_per_policy_and_shape(result: dict[str, Any]) -> None:
    assert set(result["imbalance_mean"]) == {"deepseek-v2", "janus-tiny"}
    for means in result["imbalance_mean"].values():
        assert set(means) == {*POLICIES, "least"}
        assert means["aebs"] < means["static"]


def test_times_are_of_every_policy(result: dict[str, Any]) -> None:
    assert {entry["policy"] for entry in result["cpu_us"]} == set(POLICIES)
    assert all(0 < entry["best"] <= entry["median"] for entry in result["cpu_us"])


def test_the_document_and_the_plots_show_the_result(result: dict[str, Any], tmp_path: Path) -> None:
    document = tmp_path / "scheduling.md"
    document.write_text("head\n<!-- scheduling.json: begin -->\nold\n<!-- scheduling.json: end -->\ntail\n")
    write_into(document, tables(result), result="scheduling.json")
    text = document.read_text()
    assert text.startswith("head\n") and text.endswith("-->\ntail\n") and "old" not in text
    case = next(case for case in result["cases"] if case["batch"] == 64 and case["instances"] == 16)
    assert f"{case['a_max']['token-balanced']:.2f}" in text
    write_into(document, tables(result), result="scheduling.json")
    assert document.read_text() == text

    drawn = figures(result)
    assert set(drawn) == {"scheduling-a-max.svg", "scheduling-janus-tiny.svg"}
    assert all(svg.startswith("<svg ") and svg.count("<polyline") >= len(POLICIES) for svg in drawn.values())

    document.write_text("no markers")
    with pytest.raises(ValueError, match="has no line"):
        write_into(document, "text", result="scheduling.json")


def test_the_second_way_finds_what_trying_everything_finds() -> None:
    random = np.random.default_rng(0)
    for _ in range(60):
        instances, experts = int(random.integers(1, 5)), int(random.integers(1, 7))
        hosts = [
            sorted(random.permutation(instances)[: random.integers(1, instances + 1)].tolist()) for _ in range(experts)
        ]
        loads = [np.bincount(choice, minlength=instances) for choice in itertools.product(*hosts)]
        assert least_a_max(hosts, instances) == min(load.max() for load in loads)
        first = [each[0] for each in hosts]
        assert least_imbalance(hosts, first, instances) == min(load.max() - load.min() for load in loads)


def test_a_wrong_proof_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.scheduling import quality

    from janus.core.scheduling import SCHEDULERS, Scheduler

    def liar(*given: Any) -> Assignment:
        plain = SCHEDULERS["token-balanced"](*given)
        return Assignment(plain.phys_ids, plain.load, plain.rows, plain.activated, 0, True)

    def schedulers(name: str) -> Scheduler:
        return liar if name == "aebs" else SCHEDULERS[name]

    monkeypatch.setattr(quality, "fastest_scheduler", schedulers)
    trace = Trace(
        Shape(name="small", experts=8, k=2),
        "uniform",
        np.random.default_rng(0).permuted(np.tile(np.arange(8), (200, 1)), axis=1)[:, None, :2],
    )
    with pytest.raises(NotOptimalError):
        measure(trace, (8,), Effort(batches={16: 8}, check_every=4))


def test_tokens_choose_distinct_experts_and_the_popular_ones_more_often() -> None:
    trace = synthetic(SHAPES[0], "zipf-1.0")
    batch = trace.batch(np.random.default_rng(0), 512)[0]
    assert batch.shape == (512, 6) and batch.min() >= 0 and batch.max() < 160
    assert (np.diff(np.sort(batch, axis=1), axis=1) > 0).all()
    shares = np.sort(trace.activations[0])[::-1] / trace.activations.sum()
    even = synthetic(SHAPES[0], "uniform").activations[0]
    assert shares[0] > 10 / 160 and even.max() < 1.5 * even.mean()
    assert trace.batch(np.random.default_rng(1), 2 * trace.tokens).shape == (1, 2 * trace.tokens, 6)


def test_recorded_choices_survive_the_file() -> None:
    random = np.random.default_rng(0)
    ids = np.sort(random.permuted(np.tile(np.arange(16), (50, 3, 1)), axis=2)[..., :4], axis=2)
    assert unpack(pack(ids)).tolist() == ids.tolist()


def test_slots_are_the_papers() -> None:
    """27 for DeepSeek-V2 (figure 17); every shape fits from six instances on."""
    assert [slots(shape, 6) for shape in SHAPES] == [27, 22, 43, 27, 34]


def test_balancing_tokens_pays_when_arithmetic_is_what_costs() -> None:
    found = modelled(synthetic(SHAPES[0], "zipf-1.0"), 16, (64, 65536), 1)
    cheaper = {(entry["batch"], entry["device"]): min(entry["time"], key=entry["time"].get) for entry in found}
    assert cheaper[64, "H100"] == "aebs"
    assert cheaper[65536, "A100"] == "token-balanced"
