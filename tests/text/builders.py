"""Three small tokenizers, one per family of decoders, made here so that no test needs a download."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

CORPUS = [
    "It was the best of times, it was the worst of times. The quick brown fox jumps over the lazy dog.",
    "Grüße aus Köln: naïve café, 日本語のテキスト, русский текст, עברית, 👩‍👩‍👧 family, 🏳️‍🌈 flag, e\u0301 combining.",
    "def f(x):\n    return x + 1\n\n\tprint('tab')  # two  spaces",
] * 4


def byte_level() -> Tokenizer:
    """Byte-level BPE with special and non-special added tokens, as Qwen's: most characters are several tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens([AddedToken("<think>", special=False), AddedToken("né 日", special=False)])
    return tokenizer


def byte_fallback() -> Tokenizer:
    """Llama's way: ``▁`` for spaces, ``<0xXX>`` tokens for what the vocabulary lacks, one leading space stripped."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", "▁the", "▁a", "he", "llo", "▁▁", "é", "日", "x", " ", "\n", "<0xZZ>"]
    tokenizer = Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, [], byte_fallback=True, unk_token="<unk>"))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return tokenizer


def metaspace() -> Tokenizer:
    """SentencePiece unigram's way: a Metaspace decoder that drops the space of the first token."""
    pieces = ["<unk>", "</s>", "▁", "▁▁", "▁the", "▁cat", "s", "日", "é", "a▁b"]
    tokenizer = Tokenizer(models.WordLevel({p: i for i, p in enumerate(pieces)}, unk_token="<unk>"))
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["</s>"])
    return tokenizer


def plain() -> Tokenizer:
    """No decoder at all: tokens are joined with spaces."""
    return Tokenizer(models.WordLevel({"<unk>": 0, "one": 1, "two": 2}, unk_token="<unk>"))


FAMILIES = {"byte_level": byte_level, "byte_fallback": byte_fallback, "metaspace": metaspace, "plain": plain}


def save(tokenizer: Tokenizer, model_dir: Path, **config: object) -> Path:
    """Write ``tokenizer.json`` and ``tokenizer_config.json``."""
    tokenizer.save(str(model_dir / "tokenizer.json"))
    (model_dir / "tokenizer_config.json").write_text(json.dumps(config))
    return model_dir
