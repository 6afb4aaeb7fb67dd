"""The engine serves latent attention as it serves any other: alone, crowded, put back and computed anew."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import torch

from janus.exchange.local import LocalExchange
from janus.model.checkpoint import Checkpoint
from janus.model.families import FAMILIES
from janus.model.random_model import write_random_model
from tests.model.engine import full_bank
from tests.model.families.harness import MIN_GAP, NEW_TOKENS, reference
from tests.runtime.attention_harness import PROMPTS, StartEngine, engines

#: Of DeepSeek-V3: two MoE layers behind a dense one, groups, a shared expert.
CONFIG = {
    "model_type": "deepseek_v3",
    "vocab_size": 160,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 56,
    "moe_intermediate_size": 20,
    "n_routed_experts": 12,
    "num_experts_per_tok": 3,
    "first_k_dense_replace": 1,
    "n_group": 4,
    "topk_group": 2,
    "kv_lora_rank": 32,
    "q_lora_rank": 24,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "max_position_embeddings": 512,
    "eos_token_id": 1,
    "torch_dtype": "float32",
}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = FAMILIES["deepseek_v3"].parse_config(CONFIG, {}, "config.json")
    return write_random_model(tmp_path_factory.mktemp("latent") / "model", config, seed=1, std=0.3)


@pytest.fixture
async def start(path: Path) -> AsyncIterator[StartEngine]:
    checkpoint = Checkpoint.open(path)
    local = LocalExchange(full_bank(checkpoint, torch.float32), num_layers=checkpoint.config.num_moe_layers)
    async with engines(checkpoint, local) as make:
        yield make


async def test_tokens_are_those_of_transformers_alone_crowded_and_put_back(path: Path, start: StartEngine) -> None:
    alone, crowded = start(), start(num_blocks=40)
    for name, prompt in PROMPTS.items():
        alone.submit(name, prompt, max_tokens=NEW_TOKENS)
        await alone.end(name)
    for name, prompt in PROMPTS.items():
        crowded.submit(name, prompt, max_tokens=NEW_TOKENS)
    model = reference(path)
    for name, prompt in PROMPTS.items():
        await crowded.end(name)
        tokens = crowded.tokens(name)
        assert tokens == alone.tokens(name)
        assert len(tokens) == NEW_TOKENS
        with torch.inference_mode():
            best = model(torch.tensor([[*prompt, *tokens[:-1]]])).logits[0, len(prompt) - 1 :].topk(2)
        clear = best.values[:, 0] - best.values[:, 1] > MIN_GAP
        assert clear.float().mean() > 0.9
        assert torch.equal(torch.tensor(tokens)[clear], best.indices[clear, 0])
    stats = crowded.engine.stats()
    assert stats.preemptions > 0
    assert (stats.running, stats.waiting, stats.blocks_used) == (0, 0, 0)
