"""gpt-oss equals transformers, over the switches that its config has, in MXFP4 as it is published too."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GptOssConfig
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from janus.errors import CheckpointError
from janus.model.config import ModelConfig
from janus.model.mxfp4 import dequantise
from janus.model.random_model import write_random_model
from tests.model.engine import Engine
from tests.model.families.harness import TINY, both, check_family, check_random_model, config_in, prompts, write
from tests.model.families.quantised import dequantised

FULL, WINDOW = "full_attention", "sliding_attention"
VARIANTS: dict[str, dict[str, Any]] = {
    "windows_by_turns": {},
    "low_limit_tied": {"swiglu_limit": 0.5, "swiglu_alpha": 1.1, "tie_word_embeddings": True, "num_experts_per_tok": 1},
    "full_attention_only": {"layer_types": [FULL] * 3, "num_local_experts": 3, "num_experts_per_tok": 3},
    "last_layer_through_a_window": {"layer_types": [FULL, FULL, WINDOW], "sliding_window": 5, "head_dim": 32},
}
YARN = {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False}


def config_of(**changes: Any) -> GptOssConfig:
    own = {
        # With more, f32 is 1.4e-4 off f64 in transformers, 0.9e-4 here.
        "initializer_range": 0.2,
        "intermediate_size": 20,
        "head_dim": 16,
        "sliding_window": 24,
        "num_local_experts": 6,
        "num_experts_per_tok": 2,
        "rope_parameters": YARN | {"original_max_position_embeddings": 32, "rope_theta": 150_000.0},
    }
    return GptOssConfig(**TINY | own | changes)


@both
@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_equals_transformers(tmp_path: Path, changes: dict[str, Any], kernels: bool) -> None:
    check_family(write(config_of(**changes), tmp_path / "model"), kernels=kernels)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_random_models_are_read_alike(tmp_path: Path, changes: dict[str, Any]) -> None:
    check_random_model(config_in(write(config_of(**changes), tmp_path / "model")), tmp_path)


def test_every_code_and_scale_stands_for_what_it_does_in_transformers() -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(1, 4, 4, 16)
    scales = torch.tensor([[[127, 121, 130, 140], [100, 126, 128, 127], [110, 150, 127, 90], [127, 127, 1, 254]]])
    for dtype in (torch.float32, torch.bfloat16):
        want = convert_moe_packed_tensors(codes, scales.to(torch.uint8), dtype=dtype)[0].T
        assert torch.equal(dequantise(codes[0], scales[0].to(torch.uint8), dtype), want)


def test_mxfp4_experts_are_those_of_the_dequantised_checkpoint(tmp_path: Path) -> None:
    """One byte range per expert is read, and what it stands for gives the logits of the same weights in f32."""
    config = config_in(write(config_of(hidden_size=64, intermediate_size=32), tmp_path / "shape"))
    quantised = Engine(write_random_model(tmp_path / "mxfp4", replace(config, mxfp4=True), seed=2, std=0.2))
    layer = quantised.config.moe_layers[0]
    before = quantised.checkpoint.bytes_read
    weights = quantised.checkpoint.read_expert(layer, 3, torch.float32)
    products = weights.gate_up.numel() + weights.down.numel()
    biases = 4 * (2 * 32 + 64)
    assert quantised.checkpoint.bytes_read - before == products // 2 + products // 32 + biases
    raw = json.loads((tmp_path / "mxfp4" / "config.json").read_text())
    assert raw["quantization_config"] == {"quant_method": "mxfp4"}
    plain = dequantised(tmp_path / "mxfp4", tmp_path / "plain")
    check_family(plain, kernels=True)
    prompt = prompts(config.vocab_size)[0]
    (got,), (want,) = (
        engine.step([(engine.sequence(prompt), len(prompt))]) for engine in (quantised, Engine(plain, block_size=16))
    )
    torch.testing.assert_close(got, want, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_types": [FULL]}, "layer_types = .* is not supported.*one for each of 3 layers"),
        ({"layer_types": [FULL, FULL, "chunked_attention"]}, "layer_types"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config.*supported: mxfp4"),
        ({"quantization_config": {"quant_method": "mxfp4"}}, "no multiples of 32"),
    ],
)
def test_what_is_not_supported_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    raw = config_of().to_dict() | changes
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match=message):
        ModelConfig.load(tmp_path)
