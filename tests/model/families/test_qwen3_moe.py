"""Qwen3-MoE in the form that it is published in besides bf16; ``test_against_transformers.py`` has its variants."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from transformers import Qwen3MoeConfig

from janus.model.random_model import write_random_model
from tests.model.engine import Engine
from tests.model.families.harness import TINY, both, check_random_model, config_in, prompts, reference, write
from tests.model.families.test_fp8 import dequantised


def config_of() -> Qwen3MoeConfig:
    own = {"head_dim": 16, "moe_intermediate_size": 20, "num_experts": 6, "num_experts_per_tok": 2}
    return Qwen3MoeConfig(**TINY | own | {"mlp_only_layers": [1], "intermediate_size": 40})


@both
def test_fp8_blocks_are_dequantised(tmp_path: Path, kernels: bool) -> None:
    config = config_in(write(config_of(), tmp_path / "shape"))
    path = write_random_model(tmp_path / "fp8", replace(config, fp8_block=(16, 12)), seed=4, std=0.2)
    engine, model = (
        Engine(path, kernels=kernels),
        reference(dequantised(path, tmp_path / "dequantised", (16, 12))),
    )
    assert engine.config.fp8_block == (16, 12)
    for prompt in prompts(engine.config.vocab_size):
        (got,) = engine.step([(engine.sequence(prompt), len(prompt))])
        with torch.inference_mode():
            torch.testing.assert_close(got, model(torch.tensor([prompt])).logits[0], atol=1e-3, rtol=0)


def test_random_models_are_read_alike(tmp_path: Path) -> None:
    check_random_model(config_in(write(config_of(), tmp_path / "model")), tmp_path)
