"""The decoders of a ``tokenizer.json`` as streams: token strings in, text out, as soon as it can no longer change.

The ``tokenizers`` library decodes a whole sequence at once. Decoding every prefix again costs O(n^2) per request, and
decoding a sliding window is exact for some tokenizers only. So each decoder is written here as a *stage* that is fed
one token at a time and holds back exactly what later tokens may still change. For every sequence of tokens the
concatenated output equals the library's (tests/text compares them).

A stage keeps the state of one stream; ``Decoding.stages()`` makes fresh ones.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from janus.errors import CheckpointError

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Stage(Protocol):
    """One decoder of the chain, for one stream."""

    def feed(self, token: str) -> list[str]:
        """Take the next token; return the tokens that are now final, in order."""
        ...

    def flush(self) -> list[str]:
        """The stream has ended: return what was held back."""
        ...


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte, inverted."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(rest)}


_ALPHABET = _byte_level_alphabet()


def byte_level_bytes(token: str) -> bytes:
    """The bytes that a byte-level token stands for; a token outside the alphabet stands for its own UTF-8."""
    try:
        return bytes([_ALPHABET[char] for char in token])
    except KeyError:
        return token.encode()


_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def byte_token(token: str) -> int | None:
    """The byte of a fallback token such as ``<0xE2>``, or None for any other token."""
    match = _BYTE_TOKEN.fullmatch(token)
    return int(match[1], 16) if match else None


class ByteLevelStage:
    """Bytes to text, a character at a time; holds back the bytes of an incomplete character (at most three)."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token: str) -> list[str]:
        return [self._decoder.decode(byte_level_bytes(token))]

    def flush(self) -> list[str]:
        return [self._decoder.decode(b"", True)]


class ByteFallbackStage:
    """Joins runs of byte tokens; holds back a run until it ends.

    The library renders a whole run as replacement characters when any part of it is not UTF-8, so nothing of a run is
    final before its end.
    """

    def __init__(self) -> None:
        self._run = bytearray()

    def feed(self, token: str) -> list[str]:
        byte = byte_token(token)
        if byte is not None:
            self._run.append(byte)
            return []
        return [*self.flush(), token]

    def flush(self) -> list[str]:
        run, self._run = self._run, bytearray()
        if not run:
            return []
        try:
            return [run.decode()]
        except UnicodeDecodeError:
            return [_REPLACEMENT * len(run)]


class MapStage:
    """Rewrites each token by itself."""

    def __init__(self, rewrite: Callable[[str], str]) -> None:
        self._rewrite = rewrite

    def feed(self, token: str) -> list[str]:
        return [self._rewrite(token)]

    def flush(self) -> list[str]:
        return []


class FirstTokenStage:
    """Rewrites the first token in one way and all others in another."""

    def __init__(self, first: Callable[[str], str], others: Callable[[str], str]) -> None:
        self._rewrite = first
        self._others = others

    def feed(self, token: str) -> list[str]:
        text = self._rewrite(token)
        self._rewrite = self._others
        return [text]

    def flush(self) -> list[str]:
        return []


class StripStage:
    """Strips the ends of the whole text (a Strip after a Fuse); holds back what may turn out to be its end."""

    def __init__(self, content: str, start: int, stop: int) -> None:
        self._content = content
        self._start_left = start
        self._stop = stop
        self._held = ""

    def feed(self, token: str) -> list[str]:
        while self._start_left and token:
            if not token.startswith(self._content):
                self._start_left = 0
                break
            token = token[len(self._content) :]
            self._start_left -= 1
        text = self._held + token
        cut = len(text) - _trailing(text, self._content, self._stop)
        self._held = text[cut:]
        return [text[:cut]]

    def flush(self) -> list[str]:
        self._held = ""
        return []


def _trailing(text: str, char: str, limit: int) -> int:
    """How many of the last ``limit`` characters of ``text`` are ``char``, counted from its end."""
    count = 0
    while count < limit and count < len(text) and text[-1 - count] == char:
        count += 1
    return count


def _strip(token: str, content: str, start: int, stop: int) -> str:
    stage = StripStage(content, start, stop)
    return "".join(stage.feed(token))


@dataclass(frozen=True, slots=True)
class Decoding:
    """How a tokenizer turns tokens into text: one factory per decoder of its chain."""

    factories: tuple[Callable[[], Stage], ...]
    byte_level: bool

    def stages(self) -> list[Stage]:
        """Fresh stages for one stream."""
        return [factory() for factory in self.factories]

    @classmethod
    def from_spec(cls, spec: dict[str, Any] | None, *, where: str) -> Decoding:
        """Read the ``decoder`` entry of the tokenizer file ``where``.

        Raises:
            CheckpointError: the file uses a decoder that cannot be streamed exactly.
        """
        if spec is None:
            return cls((lambda: FirstTokenStage(str, lambda token: " " + token),), byte_level=False)
        chain = spec["decoders"] if spec["type"] == "Sequence" else [spec]
        factories: list[Callable[[], Stage]] = []
        fused = False
        for step in chain:
            kind = step["type"]
            if kind == "Fuse":
                fused = True
                continue
            factories.append(_factory(step, fused, where))
            fused = fused or kind == "ByteLevel"
        return cls(tuple(factories), byte_level=any(step["type"] == "ByteLevel" for step in chain))


def _factory(step: dict[str, Any], fused: bool, where: str) -> Callable[[], Stage]:
    match step:
        case {"type": "ByteLevel"} if not fused:
            return ByteLevelStage
        case {"type": "ByteFallback"} if not fused:
            return ByteFallbackStage
        case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)} if not fused or len(old) == 1:
            return lambda: MapStage(lambda token: token.replace(old, new))
        case {"type": "Strip", "content": str(char), "start": int(start), "stop": int(stop)}:
            if fused:
                return lambda: StripStage(char, start, stop)
            return lambda: MapStage(lambda token: _strip(token, char, start, stop))
        case {"type": "Metaspace", "replacement": str(mark), "prepend_scheme": str(scheme)} if not fused:
            first = " " if scheme == "never" else ""
            return lambda: FirstTokenStage(
                lambda token: token.replace(mark, first), lambda token: token.replace(mark, " ")
            )
    raise CheckpointError(
        where,
        f"decoder {step['type']!r}{' after a Fuse' if fused else ''} cannot be streamed",
        "use a checkpoint with a ByteLevel, Metaspace or byte-fallback tokenizer",
    )
