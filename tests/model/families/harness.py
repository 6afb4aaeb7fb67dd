"""What every family's test asks: prefill and decode, alone and together, give the logits of ``transformers``.

A token is greedy if it is the best of the reference's logits after what came before; so that all of them are, it takes
one pass of the reference over prompt and answer, and every logit on the way is compared too.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.utils import logging as transformers_logging

from janus.model.checkpoint import Checkpoint
from janus.model.config import ModelConfig
from janus.model.families import family_named
from janus.model.random_model import write_random_model
from tests.model.engine import Engine
from tests.model.engine import Sequence as Running

transformers_logging.disable_progress_bar()

NEW_TOKENS = 64
TOLERANCE = 1e-4
#: Below this gap the best token hangs on rounding, and says nothing.
MIN_GAP = 1e-3

#: Sizes of a model that computes in a millisecond; a family's test adds what its config class needs.
TINY: dict[str, Any] = {
    "vocab_size": 160,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "pad_token_id": None,
    "eos_token_id": 1,
    "attn_implementation": "eager",
}


def write(config: PreTrainedConfig, directory: Path, *, seed: int = 0, shard_size: str = "1GB") -> Path:
    """Write a random checkpoint of ``config`` by ``transformers``, in files of at most ``shard_size``.

    No tensor is left at an initial 0 or 1, where one that is never read would go unnoticed.
    """
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if name.endswith(("norm.weight", "bias")):
                tensor.add_(torch.randn_like(tensor) * 0.1)
    model.save_pretrained(directory, max_shard_size=shard_size)
    return directory


def reference(path: Path) -> Any:
    """``transformers`` in f32, as it reads the checkpoint itself; a missing or unused tensor is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, info = AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
        )
    assert not info["missing_keys"], info
    assert not info["unexpected_keys"], info
    return model.eval()


def prompts(vocab: int, lengths: Sequence[int] = (37, 1, 18)) -> list[list[int]]:
    """Prompts that mix prefill in chunks with decode."""
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(0, vocab, (length,), generator=generator).tolist() for length in lengths]


def check_family(path: Path, *, kernels: bool, tolerance: float = TOLERANCE) -> Engine:
    """Hold the model in ``path`` against ``transformers``; returns the engine that computed it."""
    engine, model = Engine(path, kernels=kernels, block_size=8), reference(path)
    batch = prompts(engine.config.vocab_size)
    together = generate(engine, batch, chunk=7)
    for prompt, (tokens, logits) in zip(batch, together, strict=True):
        with torch.inference_mode():
            want = model(torch.tensor([tokens[:-1]])).logits[0]
        torch.testing.assert_close(logits, want, atol=tolerance, rtol=0)
        best = want[len(prompt) - 1 :].topk(2)
        clear = best.values[:, 0] - best.values[:, 1] > MIN_GAP
        assert clear.float().mean() > 0.9
        chosen = torch.tensor(tokens[len(prompt) :])
        assert torch.equal(chosen[clear], best.indices[clear, 0])
    answers = [tokens[len(prompt) :] for prompt, (tokens, _) in zip(batch, together, strict=True)]
    assert len(set().union(*answers)) > 10, "answers that hardly vary show little"
    (alone, alone_logits) = generate(engine, batch[:1], chunk=64)[0]
    assert alone == together[0][0]
    if kernels:
        assert torch.equal(alone_logits, together[0][1]), "a row depends on its company"
    else:
        torch.testing.assert_close(alone_logits, together[0][1], atol=tolerance, rtol=0)
    return engine


def generate(engine: Engine, batch: list[list[int]], *, chunk: int) -> list[tuple[list[int], torch.Tensor]]:
    """Answer all prompts greedily and together, prefilled in chunks; see below for what is returned.

    Returns:
        tokens, and f32 [len(tokens) - 1, vocab] for each prompt.
    """
    running = [engine.sequence(prompt, len(prompt) + NEW_TOKENS) for prompt in batch]
    wanted = [len(prompt) + NEW_TOKENS for prompt in batch]
    logits: list[list[torch.Tensor]] = [[] for _ in batch]
    while True:
        chunks: list[tuple[int, Running, int]] = []
        for index, sequence in enumerate(running):
            left = len(sequence.tokens) - sequence.computed
            if len(sequence.tokens) < wanted[index]:
                chunks.append((index, sequence, min(chunk, left)))
        if not chunks:
            break
        step = engine.step([(sequence, count) for _, sequence, count in chunks])
        for (index, sequence, _), rows in zip(chunks, step, strict=True):
            logits[index].append(rows)
            if sequence.computed == len(sequence.tokens):
                sequence.tokens.append(int(rows[-1].argmax()))
    for sequence in running:
        engine.release(sequence)
    return [(sequence.tokens, torch.cat(rows)) for sequence, rows in zip(running, logits, strict=True)]


def check_random_model(config: ModelConfig, directory: Path) -> None:
    """What ``write_random_model`` writes is read by ``transformers`` and here as the same model."""
    path = write_random_model(directory / "random", config, seed=5, std=0.1)
    parsed = ModelConfig.load(path)
    assert {item.name: getattr(parsed, item.name) for item in fields(parsed)} == {
        item.name: getattr(config, item.name) for item in fields(config)
    }
    engine, model = Engine(path), reference(path)
    prompt = prompts(config.vocab_size)[0]
    (got,) = engine.step([(engine.sequence(prompt), len(prompt))])
    with torch.inference_mode():
        torch.testing.assert_close(got, model(torch.tensor([prompt])).logits[0], atol=TOLERANCE, rtol=0)


def config_in(path: Path) -> ModelConfig:
    """The parsed config of a checkpoint, whose names and shapes have been checked."""
    checkpoint = Checkpoint.open(path)
    checkpoint.close()
    assert family_named(checkpoint.config.family) is not None
    return checkpoint.config


both = pytest.mark.parametrize("kernels", [True, False], ids=["kernels", "torch"])
