"""DeepSeek-V3 equals transformers, over the switches that its config has."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DeepseekV3Config

from janus.core.planning.catalog import sizes_of
from janus.errors import CheckpointError
from janus.model.config import ModelConfig
from janus.model.families import FAMILIES
from janus.model.families.base import attention_tensors, tensors_in
from tests.model.families.harness import TINY, both, check_family, check_random_model, config_in, write
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
