"""Logits and greedy tokens equal those of transformers, over the shapes that the family can take."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from transformers import GenerationConfig, Qwen3MoeForCausalLM
from transformers.utils import logging as transformers_logging

from tests.model.engine import Engine

transformers_logging.disable_progress_bar()

VARIANTS: dict[str, dict[str, object]] = {
    "grouped_query": {},
    "multi_head_wide_head": {"num_heads": 4, "num_kv_heads": 4, "head_dim": 32, "hidden_size": 48},
    "single_kv_head_odd_sizes": {"num_heads": 6, "num_kv_heads": 1, "head_dim": 24, "moe_intermediate_size": 20},
    "head_64_many_experts": {"head_dim": 64, "num_experts": 33, "top_k": 7, "hidden_size": 72},
    "raw_probabilities_tied": {"norm_topk_prob": False, "tie_word_embeddings": True, "top_k": 1},
    "dense_layers_biases": {"num_layers": 4, "moe_layers": (1, 3), "attention_bias": True, "intermediate_size": 88},
    "all_experts": {"num_experts": 4, "top_k": 4, "norm_topk_prob": False, "rope_theta": 1e6},
}


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS.keys())
def model_path(request: pytest.FixtureRequest, random_model: Callable[..., Path]) -> Path:
    return random_model(std=0.1, **request.param)


@cache
def reference(path: Path, dtype: torch.dtype = torch.float32) -> Qwen3MoeForCausalLM:
    return Qwen3MoeForCausalLM.from_pretrained(path, dtype=dtype).eval()


def prompts(count: int, vocab: int = 320, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 70, (count,), generator=generator).tolist()
    return [torch.randint(0, vocab, (length,), generator=generator).tolist() for length in lengths]


@torch.inference_mode()
def reference_logits(path: Path, tokens: list[int]) -> torch.Tensor:
    return reference(path)(torch.tensor([tokens])).logits[0]


@torch.inference_mode()
def reference_greedy(path: Path, prompt: list[int], new_tokens: int) -> list[int]:
    ids = torch.tensor([prompt])
    # With an explicit mask: generate() would otherwise take token 0 inside the prompt for padding.
    settings = GenerationConfig(max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False, pad_token_id=0)
    model = reference(path)
    model.generation_config.eos_token_id = None
    out = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    return out[0, len(prompt) :].tolist()


@pytest.mark.parametrize("kernels", [True, False], ids=["kernels", "torch"])
def test_logits_and_greedy_tokens_equal(model_path: Path, kernels: bool) -> None:
    engine = Engine(model_path, kernels=kernels, block_size=8)
    assert engine.model.uses_kernels is kernels
    batch = prompts(3)
    sequences = [engine.sequence(prompt) for prompt in batch]

    # Prefill in odd chunks, each step mixing sequences at different places; then the rest one by one.
    parts: list[list[torch.Tensor]] = [[] for _ in batch]
    for turn in range(200):
        chunks = []
        for index, seq in enumerate(sequences):
            left = len(seq.tokens) - seq.computed
            size = min(left, (5, 1, 13)[(turn + index) % 3])
            if size:
                chunks.append((index, seq, size))
        if not chunks:
            break
        for (index, _, _), logits in zip(chunks, engine.step([(seq, n) for _, seq, n in chunks]), strict=True):
            parts[index].append(logits)
    for prompt, got in zip(batch, parts, strict=True):
        torch.testing.assert_close(torch.cat(got), reference_logits(model_path, prompt), atol=1e-4, rtol=0)

    want = [reference_greedy(model_path, prompt, 64) for prompt in batch]
    assert engine.greedy(batch, 64, chunk=7) == want


def test_bf16_stays_within_the_spread_of_transformers_itself(random_model: Callable[..., Path]) -> None:
    """How far bf16 logits are from f32 ones, ours against transformers' own on the same prompts."""
    path = random_model(std=0.1, num_layers=4, hidden_size=128, num_experts=16, top_k=4, dtype=torch.bfloat16)
    batch = prompts(6, seed=3)
    engine, half = Engine(path, torch.bfloat16), reference(path, torch.bfloat16)
    ours, theirs = [], []
    for prompt in batch:
        exact = reference_logits(path, prompt)
        (logits,) = engine.step([(engine.sequence(prompt), len(prompt))])
        ours.append((logits - exact).abs().flatten())
        with torch.inference_mode():
            theirs.append((half(torch.tensor([prompt])).logits[0].float() - exact).abs().flatten())
    assert torch.cat(ours).mean() <= 1.1 * torch.cat(theirs).mean()
    assert torch.cat(ours).quantile(0.99) <= 1.2 * torch.cat(theirs).quantile(0.99)


def test_checkpoints_written_by_transformers_are_read(random_model: Callable[..., Path], tmp_path: Path) -> None:
    """transformers 5 spells config keys its own way; fused 3-D experts are how its modules hold them in memory."""
    model = reference(random_model(moe_layers=(0, 2)))
    saved = tmp_path / "saved"
    model.save_pretrained(saved)
    assert '"num_local_experts"' in (saved / "config.json").read_text()
    prompt = prompts(1)[0]
    want = reference_logits(saved, prompt)
    engine = Engine(saved)
    (got,) = engine.step([(engine.sequence(prompt), len(prompt))])
    torch.testing.assert_close(got, want, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 4.0, "rope_theta": 10_000.0},
        {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6, "original_max_position_embeddings": 64},
    ],
    ids=["linear", "yarn"],
)
@pytest.mark.parametrize("spelling", ["rope_parameters", "rope_scaling"])
def test_scaled_rope_equals(random_model: Callable[..., Path], rope: dict[str, object], spelling: str) -> None:
    import json

    path = random_model(max_position_embeddings=256)
    raw = json.loads((path / "config.json").read_text())
    raw.pop("rope_parameters")
    if spelling == "rope_scaling":
        raw["rope_theta"] = rope["rope_theta"]
        raw["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_theta"}
    else:
        raw.pop("rope_theta")
        raw["rope_parameters"] = rope
    (path / "config.json").write_text(json.dumps(raw))
    prompt = prompts(1, seed=5)[0] * 3
    engine = Engine(path)
    (got,) = engine.step([(engine.sequence(prompt), len(prompt))])
    torch.testing.assert_close(got, reference_logits(path, prompt), atol=1e-4, rtol=0)
