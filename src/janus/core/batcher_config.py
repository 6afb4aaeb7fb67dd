"""The limits of a batcher, which requests can never fit them, and the figures that it reports."""

from __future__ import annotations

from dataclasses import dataclass

from janus.errors import ConfigError, InvalidRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class BatcherConfig:
    """Limits of one attention instance."""

    #: Requests that hold blocks at the same time.
    max_running: int
    #: Tokens that one step computes at most. At least ``max_running``, so that every running stream moves each step.
    token_budget: int
    #: Tokens per block, and blocks in the KV cache.
    block_size: int
    num_blocks: int
    #: Prompt and output tokens of one request together.
    max_model_len: int
    #: Requests that wait; while so many do, one more is refused. (Preempted ones wait too, and are never refused.)
    max_waiting: int

    def __post_init__(self) -> None:
        for name in ("max_running", "token_budget", "block_size", "num_blocks", "max_model_len", "max_waiting"):
            if getattr(self, name) < 1:
                raise ConfigError(name, f"is {getattr(self, name)}", "give at least 1")
        if self.token_budget < self.max_running:
            raise ConfigError(
                "token_budget",
                f"is {self.token_budget}, less than max_running ({self.max_running}): streams would starve",
                f"give at least {self.max_running}, or lower max_running",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class BatcherStats:
    """A snapshot for metrics. Counts since the start: ``preemptions``, ``steps``, ``failed_steps``."""

    running: int
    waiting: int
    in_flight: int
    blocks_used: int
    blocks_total: int
    preemptions: int
    steps: int
    failed_steps: int
    #: When the first of the failed steps since the last good one was taken back; ``None`` while steps are good.
    failing_since: float | None
    draining: bool

    @property
    def kv_usage(self) -> float:
        """Share of the KV cache in use, 0..1."""
        return self.blocks_used / self.blocks_total


def why_too_large(config: BatcherConfig, *, prompt: int, max_tokens: int) -> InvalidRequest | None:
    """Return the refusal of a request that could not run even alone, ``None`` for one that can."""
    if prompt == 0:
        return InvalidRequest("the prompt has no tokens; give at least one", param="prompt")
    if prompt >= config.max_model_len:
        return InvalidRequest(
            f"the prompt has {prompt} tokens and the context {config.max_model_len}, with at least one for the answer; "
            f"shorten the prompt to {config.max_model_len - 1} tokens",
            param="prompt",
            code="context_length_exceeded",
        )
    # The last token is never an input, so its keys and values need no room.
    needed = -(-(min(prompt + max_tokens, config.max_model_len) - 1) // config.block_size)
    if needed > config.num_blocks:
        room = config.num_blocks * config.block_size + 1
        return InvalidRequest(
            f"prompt ({prompt} tokens) and max_tokens ({max_tokens}) need {needed} KV blocks and this instance has "
            f"{config.num_blocks}; keep both together within {room} tokens",
            param="max_tokens",
            code="kv_cache_exceeded",
        )
    return None
