"""Parsing ``config.json`` in the spellings of transformers 4 and 5, and refusing what is not served."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from janus.errors import CheckpointError
from janus.model.config import ModelConfig
from janus.model.families import family_named
from janus.model.random_model import benchmark_config, random_config


def write(path: Path, raw: object) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(raw))
    return path


def raw_config(**changes: Any) -> dict[str, Any]:
    config = random_config(num_layers=6)
    raw = family_named("qwen3_moe").to_json(config) | changes
    return {key: value for key, value in raw.items() if value != "DROP"}


@pytest.mark.parametrize("config", [random_config(moe_layers=(1,), attention_bias=True), benchmark_config()])
def test_round_trip(tmp_path: Path, config: ModelConfig) -> None:
    assert ModelConfig.load(write(tmp_path / "m", family_named("qwen3_moe").to_json(config))) == config


def test_spellings_of_transformers_4_and_5(tmp_path: Path) -> None:
    four = raw_config(rope_parameters="DROP", rope_theta=5e5, torch_dtype="float16")
    five = raw_config(rope_theta="DROP", num_experts="DROP", torch_dtype="DROP", num_local_experts=8, dtype="float16")
    five["rope_parameters"] = {"rope_type": "default", "rope_theta": 5e5}
    parsed = [ModelConfig.load(write(tmp_path / name, raw)) for name, raw in (("4", four), ("5", five))]
    assert parsed[0] == parsed[1]
    assert parsed[0].rope_theta == 5e5
    assert parsed[0].torch_dtype == "float16"


def test_which_layers_have_experts(tmp_path: Path) -> None:
    config = ModelConfig.load(write(tmp_path / "m", raw_config(mlp_only_layers=[3], decoder_sparse_step=2)))
    assert config.moe_layers == (1, 5)
    assert config.dense_layers == (0, 2, 3, 4)
    assert config.moe_index == {1: 0, 5: 1}
    assert config.num_moe_layers == 2


def test_generation_config_adds_eos_and_defaults(tmp_path: Path) -> None:
    path = write(tmp_path / "m", raw_config(eos_token_id=7))
    (path / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [9, 7], "temperature": 0.6, "top_k": 20, "do_sample": True})
    )
    config = ModelConfig.load(path)
    assert config.eos_token_ids == (9, 7)
    assert config.generation_defaults == {"temperature": 0.6, "top_k": 20.0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "model_type 'llama' is not supported; supported: .*qwen3_moe"),
        ({"model_type": "DROP"}, "model_type None is not supported"),
        ({"hidden_size": "DROP"}, "hidden_size is missing"),
        ({"hidden_size": "many"}, "hidden_size is 'many'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"num_attention_heads": True}, "num_attention_heads is True"),
        ({"num_key_value_heads": 3}, "no multiple"),
        ({"head_dim": 15}, "head_dim 15 is odd"),
        ({"num_experts_per_tok": 9}, "exceeds num_experts"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu' is not supported; supported: silu"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"rope_parameters": {"rope_type": "longrope", "factor": 2.0}}, "longrope.* not supported; supported: default"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "needs a factor"),
        ({"rope_parameters": "yes"}, "not an object"),
        ({"mlp_only_layers": [0, 1, 2, 3, 4, 5]}, "no layer has experts"),
        ({"mlp_only_layers": "all"}, "mlp_only_layers"),
        ({"rms_norm_eps": -1}, "rms_norm_eps"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
    ],
)
def test_unsupported_is_refused_by_name(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        ModelConfig.load(write(tmp_path / "m", raw_config(**changes)))


@pytest.mark.parametrize("content", ["", "{", "[]", "\x00\x01", '"text"'])
def test_unreadable_config_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config.json"):
        ModelConfig.load(tmp_path)


def test_random_model_is_reproducible_and_read_by_tokenizers(random_model: Callable[..., Path]) -> None:
    from tokenizers import Tokenizer

    first = random_model(seed=3, tokenizer=True, dtype=torch.bfloat16)
    data = (first / "model.safetensors").read_bytes()
    assert (random_model(seed=3, dtype=torch.bfloat16) / "model.safetensors").read_bytes() == data
    assert (random_model(seed=4, dtype=torch.bfloat16) / "model.safetensors").read_bytes() != data
    tokenizer = Tokenizer.from_file(str(first / "tokenizer.json"))
    text = "héllo, wörld \n 你好"
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids) == text
    assert max(ids) < 258
    assert tokenizer.get_vocab_size() == 320
    assert tokenizer.decode([319, 258]) == " w61 w0"
