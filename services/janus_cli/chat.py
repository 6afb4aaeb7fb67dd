"""``janus chat``: prompts from a terminal, answers streamed to it."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from janus.cluster.state import RunDirectory
from janus.errors import JanusError
from janus_cli.options import ChatOptions, Sampling
from janus_cli.stream import Usage, stream


def chat(options: ChatOptions) -> int:
    """Answer ``--prompt``, or the prompts that the user types until end of input."""
    url, turns, sampling = options.url.rstrip("/").removesuffix("/v1"), options.turns, options.sampling
    base = url or RunDirectory(options.name).read().url
    if options.prompt:
        answer(base, [], options.prompt, sampling, turns=turns)
        return 0
    history: list[dict[str, str]] = []
    print("Type a text to continue; Ctrl-D ends." if not turns else "Talk; Ctrl-D ends.", file=sys.stderr)
    while True:
        try:
            line = input("> ")
        except (EOFError, KeyboardInterrupt):
            print(file=sys.stderr)
            return 0
        if not line.strip():
            continue
        known = len(history)
        try:
            answer(base, history, line, sampling, turns=turns)
        except (JanusError, KeyboardInterrupt) as error:
            del history[known:]  # what was not answered was not said
            print(f"\nerror: {error}" if str(error) else "\n[stopped]", file=sys.stderr)


def answer(url: str, history: list[dict[str, str]], prompt: str, sampling: Sampling, *, turns: bool) -> Usage:
    """Stream one answer to stdout; in a conversation, append both sides to ``history``."""
    parts: list[str] = []

    def show(piece: str) -> None:
        parts.append(piece)
        write(piece)

    if turns:
        history.append({"role": "user", "content": prompt})
        body: dict[str, Any] = {"messages": history, **sampling.body()}
    else:
        write(prompt)
        body = {"prompt": prompt, **sampling.body()}
    usage = asyncio.run(stream(url, "chat/completions" if turns else "completions", body, show))
    if turns:
        history.append({"role": "assistant", "content": "".join(parts)})
    print()
    print(f"[{usage}]", file=sys.stderr)
    return usage


def write(piece: str) -> None:
    """Print a piece of text at once."""
    sys.stdout.write(piece)
    sys.stdout.flush()
