"""``janus models``: what is known, what a model is made of, and random weights that are served like any."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from janus.errors import CheckpointError, ConfigError
from janus.model.checkpoint import Checkpoint
from janus_cli.models import (
    ModelsInspectOptions,
    ModelsListOptions,
    ModelsRandomOptions,
    inspect,
    random,
    show_list,
)

TINY = Path(__file__).parents[2] / "models" / "janus-tiny"
SMALL = "hidden_size=64,vocab_size=300,num_attention_heads=4,num_key_value_heads=2,head_dim=16"


def test_list_says_which_are_served_and_why_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert show_list(ModelsListOptions(json=True)) == 0
    listed = json.loads(capsys.readouterr().out)
    assert {"olmoe", "mixtral", "deepseek_v3", "gpt_oss"} <= set(listed["families"])
    models = {row["name"]: row for row in listed["models"]}
    assert models["DeepSeek-V3"]["served"]
    assert models["Mixtral-8x7B"]["kv_bytes_per_token"] == 2 * 32 * 8 * 128 * 2
    assert not models["Kimi-K2"]["served"]
    assert "kimi_k2" in models["Kimi-K2"]["why_not"]
    assert show_list(ModelsListOptions()) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in models)
    assert "Kimi-K2: model_type 'kimi_k2' is not supported" in shown


def test_inspect_counts_the_bytes_of_every_tensor(capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect(ModelsInspectOptions(model=str(TINY), experts=3, dtype="float32", json=True)) == 0
    found = json.loads(capsys.readouterr().out)
    checkpoint = Checkpoint.open(TINY)
    assert sum(part["stored_bytes"] for part in found["parts"]) == sum(map(checkpoint.stored_nbytes, checkpoint.names))
    parts = {part["role"]: part for part in found["parts"]}
    assert parts["routed experts"]["parameters"] == 6 * 16 * 3 * 256 * 128
    assert found["slots"] == 6
    assert found["expert_instance"] == 6 * 6 * found["one_expert"] == 6 * 6 * 3 * 256 * 128 * 4
    assert found["attention_instance"] == 4 * sum(
        part["parameters"] for role, part in parts.items() if role != "routed experts"
    )
    assert inspect(ModelsInspectOptions(model=str(TINY))) == 0
    assert "qwen3_moe: 6 layers, 6 of them with experts" in capsys.readouterr().out


def test_inspect_knows_models_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect(ModelsInspectOptions(model="deepseek-v3", experts=8)) == 0
    shown = capsys.readouterr().out
    assert "over a latent of 576" in shown
    assert "in 4 of 8 groups, shared expert 2048 wide" in shown
    assert "32 slots in each of 58 MoE layers" in shown
    with pytest.raises(ConfigError, match=r"no model is known as 'olmo-e'.*OLMoE"):
        inspect(ModelsInspectOptions(model="olmo-e"))


def test_inspect_names_what_is_wrong_with_a_directory(tmp_path: Path) -> None:
    shutil.copytree(TINY, tmp_path / "model")
    raw = json.loads((TINY / "config.json").read_text()) | {"moe_intermediate_size": 64}
    (tmp_path / "model" / "config.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match=r"has shape \[128, 256\], the config asks for \[64, 256\]"):
        inspect(ModelsInspectOptions(model=str(tmp_path / "model")))


@pytest.mark.parametrize(
    ("model", "changes", "dtype"),
    [
        ("OLMoE", f"{SMALL},intermediate_size=24", "float32"),
        ("Mixtral-8x7B", f"{SMALL},intermediate_size=24", "float16"),
        ("gpt-oss-20b", f"{SMALL},intermediate_size=32", "published"),
        ("GLM-4.5", f"{SMALL},intermediate_size=80,moe_intermediate_size=24,first_k_dense_replace=1", "published"),
    ],
)
def test_random_weights_of_a_known_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str, changes: str, dtype: str
) -> None:
    out = tmp_path / "out"
    options = ModelsRandomOptions(model=model, out=out, layers=2, experts=4, set=changes + ",num_experts_per_tok=2",
                                  dtype=dtype)  # type: ignore[arg-type]  # fmt: skip
    assert random(options) == 0
    checkpoint = Checkpoint.open(out)
    config = checkpoint.config
    assert (config.num_layers, config.num_experts, config.hidden_size, config.vocab_size) == (2, 4, 64, 300)
    assert (out / "tokenizer.json").exists()
    assert checkpoint.config.mxfp4 == (model == "gpt-oss-20b")
    capsys.readouterr()
    assert inspect(ModelsInspectOptions(model=str(out), json=True)) == 0
    parts = json.loads(capsys.readouterr().out)["parts"]
    assert sum(part["stored_bytes"] for part in parts) == sum(map(checkpoint.stored_nbytes, checkpoint.names))


Usage = namedtuple("Usage", "total used free")


def test_random_refuses_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(**changes: object) -> None:
        random(ModelsRandomOptions(**{"model": "OLMoE", "out": tmp_path / "out"} | changes))  # type: ignore[arg-type]

    with pytest.raises(ConfigError, match=r"'hidden_size' has no value.*key=value"):
        run(set="hidden_size")
    with pytest.raises(ConfigError, match="'much' is no JSON value"):
        run(set="hidden_size=much")
    with pytest.raises(CheckpointError, match="num_experts_per_tok 8 exceeds num_experts 4"):
        run(experts=4)
    with pytest.raises(ConfigError, match=r"tmp.* exists; give --force"):
        run(out=tmp_path)
    with pytest.raises(ConfigError, match="is no directory"):
        run(out=tmp_path / "nowhere" / "out")
    with pytest.raises(ConfigError, match="vocab_size of 258, it is 100"):
        run(set="vocab_size=100")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1 << 40, 1 << 40, 1 << 20))
    with pytest.raises(ConfigError, match=r"GiB of weights do not fit, 1\.0 MiB are free there; use fewer --layers"):
        run(layers=4)
    assert not (tmp_path / "out").exists()
