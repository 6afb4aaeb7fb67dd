"""``janus plan``: its answers as tables, JSON and a picture; every source of a load; refusals that name the option."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import structlog
import typer.testing

from janus.config.cli import options_command
from janus.config.fields import option_fields
from janus.core.planning.routing import synthetic_routing
from janus.core.trace import Trace
from janus.errors import ConfigError
from janus.simulation.workloads import Workload
from janus_cli.plan import plan, seconds
from janus_cli.plan_options import LoadOptions, PlanOptions, RoutingOptions, SpaceOptions
from janus_cli.plan_traffic import traffic_of

REPOSITORY = Path(__file__).parents[2]
SMALL = SpaceOptions(max_attention=6, max_experts=10, micro_batches="1")


def options(**more: Any) -> PlanOptions:
    given: dict[str, Any] = {
        "model": "DeepSeek-V2",
        "slo_tpot": "150ms",
        "load": LoadOptions(rate=6.0, input=160.0, output=256.0),
        "routing": RoutingOptions(draws=2),
        "space": SMALL,
    }
    return PlanOptions(**(given | more))


def answer(capsys: pytest.CaptureFixture[str], given: PlanOptions) -> dict[str, Any]:
    status = plan(given)
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert status == (0 if found["chosen"] else 1)
    return found


def test_people_get_the_answer_its_memory_the_frontier_and_why_others_lose(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(options()) == 0
    text = capsys.readouterr().out
    assert "DeepSeek-V2 on h100-80gb (published figures, nothing measured)" in text
    assert "6 requests/s of 160 + 256 tokens, headroom 20%; P99 TPOT of at most 150.0 ms" in text
    assert re.search(r"\dA\dE: \d attention and \d expert instances, \d+ devices", text)
    for word in (
        "27 slots",
        "a step without prompts: attention",
        "TPG",
        "Memory per device",
        "KV cache",
        # 60 layers of a latent of 512 and a rotated key of 64, in bfloat16.
        "a token's KV cache takes 69.1 kB",
        "Feasible frontier",
        "Why the neighbours lose",
    ):
        assert word in text
    assert re.search(r"\dA\dE .*tpot: P99 TPOT \d+\.\d ms is above 150.0 ms", text)


def test_every_option_is_in_the_help() -> None:
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command()(options_command(PlanOptions, lambda _options, _config: None))
    result = typer.testing.CliRunner().invoke(app, ["--help"])
    text = "".join(result.output.split())
    for item in option_fields(PlanOptions):
        assert "".join(item.flag.split()) in text
        assert "".join(item.info.help.split()) in text


def test_programs_get_json(capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(capsys, options(json=True))
    chosen = found["chosen"]
    assert chosen["devices"] == chosen["attention"] + chosen["experts"]
    assert chosen["tpot_tail_s"] <= found["question"]["slo_tpot_s"] == 0.15
    assert chosen["violated"] is None
    assert found["nearest"] is None
    assert found["frontier"][0]["name"] == chosen["name"]
    assert all(each["why"] for each in found["neighbours"])
    assert found["kv_bytes_per_token"] == 60 * (512 + 64) * 2
    assert found["memory"]["experts"]["total"] <= found["memory"]["experts"]["usable"]
    (table,) = found["a_max"]
    assert table["slots"] == chosen["slots"] == 27
    assert np.shape(table["mean"]) == (len(table["instances"]), len(table["batches"]))


def test_what_is_logged_meanwhile_is_not_among_the_json(capsys: pytest.CaptureFixture[str]) -> None:
    plan(options(load=LoadOptions(batch=64.0), json=True))
    capsys.readouterr()
    structlog.get_logger().info("kernels_built")
    streams = capsys.readouterr()
    assert streams.out == ""
    assert "kernels_built" in streams.err


def test_what_cannot_be_names_the_constraint_and_ends_with_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(options(slo_tpot="20ms")) == 1
    text = capsys.readouterr().out
    assert "Nothing will do" in text
    assert "fails on tpot: P99 TPOT" in text
    found = answer(capsys, options(slo_tpot="20ms", json=True))
    assert found["chosen"] is None
    assert found["nearest"]["violated"] == "tpot"
    assert found["frontier"] == []


def test_the_picture_is_a_map_of_the_plane_with_the_chosen_point(tmp_path: Path) -> None:
    file = tmp_path / "plan.svg"
    assert plan(options(picture=file)) == 0
    root = ElementTree.parse(file).getroot()
    names = [each.text or "" for each in root.iter("{http://www.w3.org/2000/svg}title")]
    # All of six columns and ten rows, each with its figures or its reason.
    assert len(names) == 60
    assert sum("TPG" in name for name in names) >= 5
    assert any("slots: 5 x 27 slots hold 135 of 160 experts" in name for name in names)
    words = [each.text or "" for each in root.iter("{http://www.w3.org/2000/svg}text")]
    assert any(word.startswith("chosen: ") for word in words)
    assert {"attention instances", "expert instances", "fails on TPOT"} <= set(words)
    assert plan(options(picture=file, slo_tpot="20ms")) == 1
    assert "chosen" not in file.read_text()
    with pytest.raises(ConfigError, match="--picture"):
        plan(options(picture=tmp_path / "missing" / "plan.svg"))


def test_a_batch_is_planned_for_without_headroom_or_percentile(capsys: pytest.CaptureFixture[str]) -> None:
    load = LoadOptions(batch=64.0, context=144.0)
    found = answer(capsys, options(load=load, json=True))
    # The paper's choice (figure 16).
    assert found["chosen"]["name"] == "1A6E"
    assert found["question"]["percentile"] == 0
    assert found["chosen"]["batch"] == 64
    assert plan(options(load=load)) == 0
    assert "64 streams of 144 tokens, always; mean TPOT" in capsys.readouterr().out


def test_on_one_host_it_is_said_what_is_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from janus.core.planning.host import Host
    from janus.profiles import load_profile, write_profile

    known, model = load_profile("cpu-epyc"), str(REPOSITORY / "models" / "janus-tiny")
    bare = replace(known, figures={key: each for key, each in known.figures.items() if not key.startswith("host.")})
    tpot = {}
    for name, host in (("bare", Host()), ("shared", Host(cores=2, gateway_message_s=1e-3, gateway_token_s=1e-4))):
        path = tmp_path / f"{name}.toml"
        write_profile(replace(bare, host=host), path)
        given = options(model=model, hardware=str(path), load=LoadOptions(rate=4.0, input=20.0, output=60.0))
        assert plan(given) == 0
        assert ("of waiting for the host's cores" in capsys.readouterr().out) == bool(host.cores)
        found = answer(capsys, replace(given, json=True))
        tpot[name] = found["step"]["total_s"]
        assert (found["step"]["waiting_s"] > 0) == bool(host.cores)
    assert tpot["shared"] > tpot["bare"]


def test_a_model_can_be_a_config_and_a_profile_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from janus.profiles import load_profile, write_profile

    profile = tmp_path / "mine.toml"
    write_profile(load_profile("cpu-epyc"), profile)
    model = REPOSITORY / "models" / "janus-tiny"
    for path in (model, model / "config.json"):
        found = answer(
            capsys,
            options(
                model=str(path), hardware=str(profile), load=LoadOptions(rate=1.0, input=20.0, output=20.0), json=True
            ),
        )
        assert found["model"]["name"] == "janus-tiny"
        assert found["model"]["experts"] == 16
        assert found["hardware"]["kind"] == "measured"


def test_a_traces_routing_is_planned_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def traced(popularity: float) -> float:
        ids = synthetic_routing(160, 6, 400, layers=59, popularity=popularity)
        file = tmp_path / f"{popularity}.safetensors"
        trace = Trace(fingerprint="f", num_experts=160, expert_ids=ids, weights=np.ones(400), saved_at=0.0)
        file.write_bytes(trace.to_bytes())
        routing = RoutingOptions(trace=file, placement="eplb", draws=2)
        found = answer(capsys, options(routing=routing, load=LoadOptions(batch=64.0), json=True))
        assert "placed by eplb" in found["a_max"][0]["about"]
        return float(found["chosen"]["a_max"])

    # Fewer experts are active where a few are popular.
    assert traced(1.5) < traced(0.0)
    few = Trace(
        fingerprint="f",
        num_experts=160,
        expert_ids=synthetic_routing(160, 6, 10, layers=59),
        weights=np.ones(10),
        saved_at=0.0,
    )
    (tmp_path / "few").write_bytes(few.to_bytes())
    with pytest.raises(ConfigError, match=r"--trace.*has 10 tokens; give one with 64 or more"):
        plan(options(routing=RoutingOptions(trace=tmp_path / "few")))
    wrong = RoutingOptions(trace=tmp_path / "0.0.safetensors")
    with pytest.raises(ConfigError, match=r"--trace.*Qwen3-30B-A3B has 48 MoE layers of 128 experts, 8"):
        plan(options(model="Qwen3-30B-A3B", routing=wrong))


def test_a_file_of_requests_is_planned_for_at_its_busiest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "requests.csv"
    lines = ["TIMESTAMP,ContextTokens,GeneratedTokens"]
    # A calm minute, then one with ten times the requests.
    lines += [f"2026-01-01 00:00:{second:02}.0,100,50" for second in range(0, 60, 10)]
    lines += [f"2026-01-01 00:01:{second:02}.0,100,50" for second in range(60)]
    file.write_text("\n".join(lines) + "\n")
    load = LoadOptions(workload=str(file), window_s=30.0)
    found = answer(capsys, options(load=load, json=True))
    assert found["question"]["traffic"]["requests_s"] == pytest.approx(1.0, rel=0.05)
    assert found["question"]["traffic"]["prompt_tokens"] == 100
    assert found["question"]["traffic"]["arrival_cv"] == pytest.approx(0, abs=0.01)


def test_the_busiest_window_has_its_own_lengths_and_burstiness() -> None:
    random = np.random.default_rng(0)
    at = np.sort(np.concatenate([random.uniform(0, 1000, 200), random.uniform(600, 700, 400)]))
    output = np.where((at >= 600) & (at < 700), 200, 20)
    every = Workload(name="w", at_s=at, prompt=np.full(600, 9), output=output, duration_s=1000.0)
    busy = traffic_of(every, 100.0)
    assert busy.requests_s == pytest.approx(4.2, rel=0.1)
    assert busy.output_tokens == pytest.approx(200, rel=0.05)
    assert busy.arrival_cv == pytest.approx(1.0, abs=0.2)
    whole = traffic_of(every, 1e6)
    assert whole.requests_s == pytest.approx(0.6)
    assert whole.arrival_cv > 1.5
    assert whole.output_cv > 0


@pytest.mark.parametrize(
    ("text", "value"), [("150ms", 0.15), ("0.2s", 0.2), ("1.5 s", 1.5), ("80us", 8e-5), ("1min", 60)]
)
def test_durations_have_units(text: str, value: float) -> None:
    assert seconds("--slo-tpot", text) == pytest.approx(value)


@pytest.mark.parametrize(
    ("more", "flag"),
    [
        ({"slo_tpot": "150"}, "--slo-tpot"),
        ({"slo_tpot": "0ms"}, "--slo-tpot"),
        ({"slo_ttft": "soon"}, "--slo-ttft"),
        ({"model": "no-such-model"}, "model"),
        ({"hardware": "no-such-profile"}, "hardware"),
        ({"space": SpaceOptions(attention_devices="TPU")}, "--attention-devices"),
        ({"space": SpaceOptions(limits="TPU=3")}, "--limits"),
        ({"space": SpaceOptions(limits="H100-80GB")}, "--limits"),
        ({"space": SpaceOptions(slots=500)}, "--slots"),
        ({"space": SpaceOptions(micro_batches="0")}, "--micro-batches"),
        ({"space": SpaceOptions(tensor_parallel="two")}, "--tensor-parallel"),
    ],
)
def test_a_wrong_option_is_named(more: dict[str, Any], flag: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan(options(**more))
    assert caught.value.field == flag


def test_a_wrong_percentile_and_load_are_named_at_once() -> None:
    with pytest.raises(ConfigError, match="--percentile"):
        options(percentile=30.0)
    with pytest.raises(ConfigError, match="no load is given; give one of --rate, --workload and --batch"):
        LoadOptions()
    with pytest.raises(ConfigError, match="--rate and --batch is given"):
        LoadOptions(rate=1.0, batch=3.0)


def test_a_config_that_is_none_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "config.json"
    for content in ("{", "[]"):
        broken.write_text(content)
        with pytest.raises(ConfigError, match="--model"):
            plan(options(model=str(tmp_path)))
