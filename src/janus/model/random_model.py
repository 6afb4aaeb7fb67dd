"""Random-weight checkpoints in Hugging Face layout, for tests and benchmarks: no transformers needed to write them."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from janus.model.config import GateConfig, ModelConfig
from janus.model.families import family_named
from janus.model.random_tensors import random_tensors, write_tensors
from janus.model.rope_parameters import RopeParameters


def random_config(
    *,
    vocab_size: int = 320,
    hidden_size: int = 64,
    num_layers: int = 3,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    head_dim: int = 16,
    num_experts: int = 8,
    top_k: int = 2,
    moe_intermediate_size: int = 32,
    intermediate_size: int = 96,
    norm_topk_prob: bool = True,
    tie_word_embeddings: bool = False,
    attention_bias: bool = False,
    moe_layers: tuple[int, ...] | None = None,
    max_position_embeddings: int = 1024,
    rope_theta: float = 10_000.0,
    eos_token_ids: tuple[int, ...] = (1,),
    dtype: torch.dtype = torch.float32,
) -> ModelConfig:
    """Return a small Qwen3-MoE config; ``moe_layers`` is every layer unless given."""
    return ModelConfig(
        family="qwen3_moe",
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        max_position_embeddings=max_position_embeddings,
        rope=RopeParameters(theta=rope_theta),
        rms_norm_eps=1e-6,
        attention_bias=attention_bias,
        tie_word_embeddings=tie_word_embeddings,
        num_experts=num_experts,
        top_k=top_k,
        gate=GateConfig(normalise=norm_topk_prob),
        qk_norm=True,
        moe_intermediate_size=moe_intermediate_size,
        intermediate_size=intermediate_size,
        moe_layers=tuple(range(num_layers)) if moe_layers is None else moe_layers,
        eos_token_ids=eos_token_ids,
        torch_dtype=str(dtype).removeprefix("torch."),
    )


def benchmark_config() -> ModelConfig:
    """Return ``qwen3moe-tiny``, the shape that this project compares engines on: 481 MB in bf16."""
    return random_config(
        vocab_size=32_000,
        hidden_size=512,
        num_layers=8,
        num_heads=8,
        num_kv_heads=4,
        head_dim=64,
        num_experts=64,
        top_k=8,
        moe_intermediate_size=256,
        intermediate_size=1024,
        max_position_embeddings=4096,
        dtype=torch.bfloat16,
    )


def write_random_model(
    path: str | Path,
    config: ModelConfig,
    *,
    seed: int = 0,
    std: float = 0.04,
    shards: int = 1,
    tokenizer: bool = False,
) -> Path:
    """Write a checkpoint with weights N(0, std) (norms around 1) in ``config.torch_dtype``, and return its directory.

    With ``config.fp8_block`` the matrices of attention and experts are in FP8, as DeepSeek-V3's are; with
    ``config.mxfp4`` those of experts are in MXFP4, as gpt-oss's are. The same seed and config give the same bytes. With
    ``tokenizer`` a byte-level one is written too (needs ``vocab_size`` of at least 258): two special tokens, one token
    per byte, and words that only the model says.
    """
    directory = Path(path)
    directory.mkdir(parents=True, exist_ok=True)
    family = family_named(config.family)
    (directory / "config.json").write_text(json.dumps(family.to_json(config), indent=2) + "\n")
    generator = torch.Generator().manual_seed(seed)
    tensors = list(random_tensors(config))
    if shards == 1:
        write_tensors(directory / "model.safetensors", tensors, std, generator)
    else:
        weight_map: dict[str, str] = {}
        for shard in range(shards):
            name = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
            part = tensors[shard::shards]
            write_tensors(directory / name, part, std, generator)
            weight_map |= {stored: name for tensor in part for stored, _, _ in tensor.entries()}
        index = {"metadata": {}, "weight_map": weight_map}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    if tokenizer:
        _write_tokenizer(directory, config)
    return directory


def _write_tokenizer(directory: Path, config: ModelConfig) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    specials = ["<|pad|>", "<|end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = specials + alphabet
    if len(tokens) > config.vocab_size:
        raise ValueError(f"vocab_size {config.vocab_size} is too small for a byte-level tokenizer of {len(tokens)}")
    # Never chosen by the tokenizer, but by the model: a token without a text would be missing from every stream.
    tokens += [f"\u0120w{number}" for number in range(config.vocab_size - len(tokens))]
    vocab = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(specials)
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "<|end|>", "pad_token": "<|pad|>", "tokenizer_class": "PreTrainedTokenizerFast"})
    )
