"""Clients that wait for an answer before they ask again: so many streams, always busy."""

from __future__ import annotations

from dataclasses import dataclass

from janus.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedLoop:
    """``streams`` clients that send ``requests`` requests in all, each the next one when its last has ended."""

    streams: int
    requests: int
    prompt: int
    output: int
    name: str = "closed loop"
    #: Requests that were left out of it, as of a ``Workload``.
    left_out: int = 0

    def __post_init__(self) -> None:
        for name in ("streams", "requests", "prompt", "output"):
            if getattr(self, name) < 1:
                raise ConfigError(name, f"is {getattr(self, name)}", "give at least 1")
