"""Tokenizers for random-weight models, made so that a text says exactly which tokens it came from.

None of them is special: a text shows every token, also those that would end it.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers


def write_named(directory: Path, size: int) -> None:
    """Token 17 reads `` t17``; a text says which tokens it came from."""
    _write(directory, [f" t{token}".encode() for token in range(size)])


def write_torn(directory: Path, size: int) -> None:
    """Every token ends inside a character: the last two bytes of one and the first byte of the next.

    Any sequence of them is valid UTF-8 but for its two ends, so a server that hands text on token by token would
    break every single character.
    """
    tails = [bytes((first, second)) for first in range(0x80, 0xC0) for second in range(0x80, 0xC0)]
    _write(directory, [tail + b"\xe5" for tail in tails[:size]])


def _write(directory: Path, tokens: list[bytes]) -> None:
    byte_level = _byte_level_characters()
    names = ["".join(byte_level[byte] for byte in token) for token in tokens]
    tokenizer = Tokenizer(models.BPE(vocab={name: token for token, name in enumerate(names)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(directory / "tokenizer.json"))


def _byte_level_characters() -> dict[int, str]:
    """The character that GPT-2's byte-level scheme writes for each byte."""
    kept = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in kept]
    return {byte: chr(byte) for byte in kept} | {byte: chr(0x100 + index) for index, byte in enumerate(others)}
