"""The served model as the HTTP half sees it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from janus.messages.control import SamplingParams
from janus.model.config import ModelConfig
from janus.text import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """Name, limits and tokenizer of the model."""

    #: The name that ``/v1/models`` lists.
    name: str
    #: Other names that clients may ask for.
    aliases: tuple[str, ...] = ()
    tokenizer: Tokenizer
    #: Prompt and output tokens together.
    context_len: int
    #: Size of the logits; token ids below it are valid prompts.
    vocab_size: int
    #: What ``generation_config.json`` recommends.
    defaults: SamplingParams = field(default_factory=SamplingParams)
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def load(cls, directory: Path, *, name: str = "") -> ServedModel:
        """Read config and tokenizer. The directory, as given and in full, is an alias: clients such as
        ``vllm bench serve`` send the path that they load their own tokenizer from.

        Raises:
            CheckpointError: the directory cannot be served.
        """
        config = ModelConfig.load(directory)
        defaults = {k: v for k, v in config.generation_defaults.items() if k in _DEFAULTABLE and v is not None}
        return cls(
            name=name or directory.resolve().name,
            aliases=(str(directory), str(directory.resolve())),
            tokenizer=Tokenizer.load(directory),
            context_len=config.max_position_embeddings,
            vocab_size=config.vocab_size,
            defaults=msgspec.convert(defaults, SamplingParams, strict=False),
        )

    def card(self) -> dict[str, Any]:
        """The entry of ``/v1/models``."""
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "janus",
            "root": self.name,
            "parent": None,
            "max_model_len": self.context_len,
        }


_DEFAULTABLE = {"temperature", "top_p", "top_k", "min_p", "repetition_penalty"}
