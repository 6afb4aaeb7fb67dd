"""The checkpoints that are served: the bundled model, and random weights of a shape that other engines know."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from benchmarks.serving.worker import REPOSITORY

CACHE = REPOSITORY / "benchmarks" / ".cache"
#: Raised when the files below are written differently.
_VERSION = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchCheckpoint:
    """A model directory in Hugging Face layout."""

    name: str
    path: Path
    vocab_size: int


def bundled() -> BenchCheckpoint:
    """``models/janus-tiny``, as it comes with the repository."""
    path = REPOSITORY / "models" / "janus-tiny"
    config = json.loads((path / "config.json").read_text())
    return BenchCheckpoint(name="janus-tiny", path=path, vocab_size=config["vocab_size"])


def qwen3moe_tiny() -> BenchCheckpoint:
    """``qwen3moe-tiny``: random weights N(0, 0.04), 481 MB in bf16; written into the cache when it is not there."""
    from janus.model.random_model import benchmark_config, write_random_model

    config = benchmark_config()
    path = CACHE / f"qwen3moe-tiny-{_VERSION}"
    if not path.is_dir():
        part = path.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        write_random_model(part, config, std=0.04)
        write_tokenizer(part, config.vocab_size)
        part.rename(path)
    return BenchCheckpoint(name="qwen3moe-tiny", path=path, vocab_size=config.vocab_size)


CHECKPOINTS = {"qwen3moe-tiny": qwen3moe_tiny, "janus-tiny": bundled}


def write_tokenizer(directory: Path, vocab_size: int) -> None:
    """Write a tokenizer in which every id has text, so that every token is an event on every engine's stream."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokens = ["<|pad|>", "<|end|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "\u0120w"]
    tokens += [f"\u0120w{number}" for number in range(vocab_size - len(tokens))]
    vocab = {token: index for index, token in enumerate(tokens)}
    # One merge, since llama.cpp takes no vocabulary without.
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[("\u0120", "w")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(tokens[:2])
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"eos_token": "<|end|>", "pad_token": "<|pad|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
