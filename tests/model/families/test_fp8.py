"""Weights in FP8 with a scale per block: read as what they stand for, each role its own, and what is broken named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from janus.errors import CheckpointError
from janus.model.attention_model import AttentionModel
from janus.model.checkpoint import Checkpoint
from janus.model.config import ModelConfig
from janus.model.random_model import random_config, write_random_model
from tests.model.engine import Engine
from tests.model.families.harness import both, config_in, prompts, reference, write
from tests.model.families.quantised import dequantised, tensors_of
from tests.model.families.test_deepseek_v3 import config_of


def write_fp8(config: ModelConfig, directory: Path) -> Path:
    """Blocks that no matrix is a multiple of; shards that part a matrix from its scales."""
    return write_random_model(directory, replace(config, fp8_block=(9, 14)), seed=2, std=0.2, shards=3)


@pytest.fixture
def fp8_model(tmp_path: Path) -> Path:
    config = config_in(write(config_of(n_group=4, topk_group=2), tmp_path / "plain"))
    return write_fp8(config, tmp_path / "fp8")


@both
def test_deepseek_blocks_are_dequantised(fp8_model: Path, tmp_path: Path, kernels: bool) -> None:
    check_dequantised(fp8_model, tmp_path, kernels=kernels)


def test_qwen3_blocks_are_dequantised(tmp_path: Path) -> None:
    check_dequantised(write_fp8(random_config(moe_layers=(0, 2)), tmp_path / "fp8"), tmp_path, kernels=True)


def check_dequantised(path: Path, tmp_path: Path, *, kernels: bool) -> None:
    engine, model = Engine(path, kernels=kernels), reference(dequantised(path, tmp_path / "dequantised"))
    for prompt in prompts(engine.config.vocab_size):
        (got,) = engine.step([(engine.sequence(prompt), len(prompt))])
        with torch.inference_mode():
            torch.testing.assert_close(got, model(torch.tensor([prompt])).logits[0], atol=1e-3, rtol=0)


def test_a_role_reads_its_own_fp8_bytes_alone(fp8_model: Path) -> None:
    """An expert is three matrices of a byte per element, and their scales."""
    checkpoint = Checkpoint.open(fp8_model)
    hidden, width = checkpoint.config.hidden_size, checkpoint.config.moe_intermediate_size
    checkpoint.read_expert(1, 3, torch.bfloat16)
    scales = 2 * -(-width // 9) * -(-hidden // 14) + -(-hidden // 9) * -(-width // 14)
    assert checkpoint.bytes_read == 3 * hidden * width + 4 * scales == checkpoint.expert_nbytes(1, 3)

    whole = Checkpoint.open(fp8_model)
    AttentionModel.load(whole, whole.config, torch.float32)
    stored = tensors_of(fp8_model)
    assert whole.bytes_read == sum(each.nbytes for name, each in stored.items() if ".mlp.experts." not in name)


def test_blocks_and_joined_tensors_are_dequantised_too(fp8_model: Path) -> None:
    checkpoint = Checkpoint.open(fp8_model)
    mlp = [f"model.layers.0.mlp.{part}_proj.weight" for part in ("gate", "up")]
    gate, up = (checkpoint.read(name, torch.float32) for name in mlp)
    assert torch.equal(checkpoint.read_joined(mlp, torch.float32), torch.cat((gate, up)))
    assert torch.equal(torch.cat(list(checkpoint.read_blocks(mlp[0], 32, torch.float32))), gate)


SCALES = "model.layers.0.self_attn.kv_b_proj.weight_scale_inv"
Change = Callable[[dict[str, Any], dict[str, torch.Tensor]], object]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw, _: raw.pop("quantization_config"), "is in FP8, and config.json does not say"),
        (lambda raw, _: raw["quantization_config"].update(weight_block_size=None), "weight_block_size is None"),
        (lambda raw, _: raw["quantization_config"].update(quant_method="gptq"), "supported: fp8"),
        (lambda _, tensors: tensors.pop(SCALES), f"tensor {SCALES} is missing"),
        (lambda _, tensors: tensors.update({SCALES: torch.ones(2, 2)}), r"kv_b_proj.* has shape \[2, 2\]"),
    ],
)
def test_broken_fp8_is_named(fp8_model: Path, tmp_path: Path, change: Change, message: str) -> None:
    broken = Path(shutil.copytree(fp8_model, tmp_path / "broken"))
    raw = json.loads((broken / "config.json").read_text())
    tensors = tensors_of(broken)
    change(raw, tensors)
    (broken / "config.json").write_text(json.dumps(raw))
    (broken / "model.safetensors.index.json").unlink()
    save_file(tensors, broken / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(broken)
