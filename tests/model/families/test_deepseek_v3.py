"""DeepSeek-V3 equals transformers, over the switches that its config has; and so do its weights in FP8."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import DeepseekV3Config

from janus.core.planning.catalog import sizes_of
from janus.errors import CheckpointError
from janus.model.attention_model import AttentionModel
from janus.model.checkpoint import Checkpoint
from janus.model.config import ModelConfig
from janus.model.families import FAMILIES
from janus.model.families.base import attention_tensors, tensors_in
from janus.model.random_model import write_random_model
from tests.model.engine import Engine
from tests.model.families.harness import (
    TINY,
    both,
    check_family,
    check_random_model,
    config_in,
    prompts,
    reference,
    write,
)
from tests.model.families.test_deepseek_v2 import YARN

VARIANTS: dict[str, dict[str, Any]] = {
    "groups": {"n_group": 4, "topk_group": 2},
    "yarn": {"rope_parameters": YARN | {"mscale": 1.0, "mscale_all_dim": 1.0}, "n_group": 2, "topk_group": 1},
    "yarn_one_mscale": {"rope_parameters": YARN | {"mscale": None, "mscale_all_dim": 0.9}, "norm_topk_prob": False},
    "no_q_lora_no_dense_layer": {"q_lora_rank": None, "first_k_dense_replace": 0, "n_shared_experts": 2},
    "halves_biases": {"rope_interleave": False, "attention_bias": True, "first_k_dense_replace": 2},
}


def config_of(**changes: Any) -> DeepseekV3Config:
    own = {
        "num_key_value_heads": 4,
        "intermediate_size": 56,
        "moe_intermediate_size": 20,
        "n_routed_experts": 12,
        "num_experts_per_tok": 3,
        "first_k_dense_replace": 1,
        "n_group": 1,
        "topk_group": 1,
        "kv_lora_rank": 32,
        "q_lora_rank": 24,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8,
        "v_head_dim": 12,
    }
    return DeepseekV3Config(**TINY | own | changes)


@both
@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_equals_transformers(tmp_path: Path, changes: dict[str, Any], kernels: bool) -> None:
    check_family(write(config_of(**changes), tmp_path / "model"), kernels=kernels)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_random_models_are_read_alike(tmp_path: Path, changes: dict[str, Any]) -> None:
    check_random_model(config_in(write(config_of(**changes), tmp_path / "model")), tmp_path)


# -- weights in FP8 ----------------------------------------------------------------------------------------------------


@pytest.fixture
def fp8_model(tmp_path: Path) -> Path:
    """Blocks that no matrix is a multiple of; shards that part a matrix from its scales."""
    config = config_in(write(config_of(n_group=4, topk_group=2), tmp_path / "plain"))
    return write_random_model(tmp_path / "fp8", replace(config, fp8_block=(9, 14)), seed=2, std=0.2, shards=3)


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in sorted(path.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def dequantised(path: Path, directory: Path, block: tuple[int, int]) -> Path:
    """The same model in f32, each element multiplied by its own scale."""
    stored, plain = tensors_of(path), {}
    for name, tensor in stored.items():
        scales = stored.get(f"{name}_scale_inv")
        if scales is not None:
            rows, columns = (torch.arange(size) // each for size, each in zip(tensor.shape, block, strict=True))
            plain[name] = tensor.float() * scales[rows[:, None], columns[None]]
        elif not name.endswith("_scale_inv"):
            plain[name] = tensor
    assert len(plain) < len(stored)
    directory.mkdir()
    save_file(plain, directory / "model.safetensors")
    raw = json.loads((path / "config.json").read_text())
    del raw["quantization_config"]
    (directory / "config.json").write_text(json.dumps(raw))
    return directory


@both
def test_fp8_blocks_are_dequantised(fp8_model: Path, tmp_path: Path, kernels: bool) -> None:
    plain = dequantised(fp8_model, tmp_path / "dequantised", (9, 14))
    engine = Engine(fp8_model, kernels=kernels)
    model = reference(plain)
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
    assert checkpoint.bytes_read == 3 * hidden * width + 4 * scales

    whole = Checkpoint.open(fp8_model)
    AttentionModel.load(whole, whole.config, torch.float32)
    stored = tensors_of(fp8_model)
    assert whole.bytes_read == sum(each.nbytes for name, each in stored.items() if ".mlp.experts." not in name)


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


# -- what is refused, and the published configs ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"topk_method": "greedy"}, "topk_method = 'greedy' is not supported; supported: noaux_tc"),
        ({"scoring_func": "softmax"}, "scoring_func"),
        ({"moe_layer_freq": 2}, "moe_layer_freq"),
        ({"qk_rope_head_dim": 7}, "rotary embedding needs pairs"),
        ({"first_k_dense_replace": 3}, "no layer has experts"),
        ({"n_group": 5}, "cannot be ranked"),
        ({"model_type": "deepseek_v2", "norm_topk_prob": True}, "norm_topk_prob"),
        ({"model_type": "deepseek_v2", "norm_topk_prob": False, "topk_method": "noaux_tc"}, "group_limited_greedy"),
    ],
)
def test_unsupported_is_refused_by_name(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    raw = config_of().to_dict() | changes
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match=message):
        ModelConfig.load(tmp_path)


def test_the_published_config_is_read(tmp_path: Path) -> None:
    """Of DeepSeek-V3 as it is on the hub: keys of transformers 4, FP8, and a module that predicts one more token."""
    raw = {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        "vocab_size": 129_280,
        "hidden_size": 7_168,
        "intermediate_size": 18_432,
        "moe_intermediate_size": 2_048,
        "num_hidden_layers": 61,
        "num_nextn_predict_layers": 1,
        "num_attention_heads": 128,
        "num_key_value_heads": 128,
        "n_shared_experts": 1,
        "n_routed_experts": 256,
        "ep_size": 1,
        "routed_scaling_factor": 2.5,
        "kv_lora_rank": 512,
        "q_lora_rank": 1_536,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "qk_nope_head_dim": 128,
        "topk_method": "noaux_tc",
        "n_group": 8,
        "topk_group": 4,
        "num_experts_per_tok": 8,
        "moe_layer_freq": 1,
        "first_k_dense_replace": 3,
        "norm_topk_prob": True,
        "scoring_func": "sigmoid",
        "hidden_act": "silu",
        "max_position_embeddings": 163_840,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10_000,
        "rope_scaling": {
            "type": "yarn",
            "factor": 40,
            "original_max_position_embeddings": 4_096,
            "beta_fast": 32,
            "beta_slow": 1,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
        },
        "attention_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "torch_dtype": "bfloat16",
        "quantization_config": {
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "quant_method": "fp8",
            "weight_block_size": [128, 128],
        },
    }
    (tmp_path / "config.json").write_text(json.dumps(raw))
    config = ModelConfig.load(tmp_path)
    assert config.fp8_block == (128, 128)
    assert config.moe_layers == tuple(range(3, 61))
    assert config.kv_layout.bytes_per_token(2) == 61 * (512 + 64) * 2
    planned = sizes_of(raw, dtype="bfloat16")
    assert planned.kv_bytes_per_token == config.kv_layout.bytes_per_token(2)
    held = [*tensors_in(FAMILIES["deepseek_v3"].model(config))]
    for layer in range(61):
        held += attention_tensors(FAMILIES["deepseek_v3"], config, layer)
    assert planned.attention_side_params == sum(math.prod(spec.shape) for spec in held)
    assert config.rope.score_scale == pytest.approx((0.1 * torch.tensor(40.0).log().item() + 1) ** 2)
