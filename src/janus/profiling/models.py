"""The models that are measured where none is given: random weights, two shapes, so that rates and overheads part."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from janus.core.planning.catalog import sizes_of
from janus.core.planning.sizes import ModelSizes
from janus.errors import CheckpointError, ConfigError

_CONTEXT = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A checkpoint to measure with."""

    path: Path
    sizes: ModelSizes
    vocab_size: int
    max_model_len: int


def measured(path: Path, *, dtype: str) -> Measured:
    """Return the checkpoint in directory ``path``, held in ``dtype``.

    Raises:
        ConfigError: it has no config.json, or not that of a MoE model.
    """
    try:
        config: dict[str, Any] = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError("--model", f"{path}/config.json: {error}", "give a Hugging Face model directory") from error
    for key in ("vocab_size", "max_position_embeddings"):
        if not isinstance(config.get(key), int):
            raise ConfigError(f"config.json: {key}", "is missing", "give the config of a model that can be served")
    return Measured(
        path=path,
        sizes=sizes_of(config, name=path.resolve().name, dtype=dtype),
        vocab_size=config["vocab_size"],
        max_model_len=config["max_position_embeddings"],
    )


def write_models(directory: Path, *, dtype: str, quick: bool) -> list[Measured]:
    """Write the models into ``directory``: one of megabytes, which caches hold, and one of hundreds, which none does.

    ``quick``: the larger one with fewer layers, since it is written and read in a fraction of the time.
    """
    import torch

    from janus.model.random_model import random_config, write_random_model

    shapes: dict[str, dict[str, Any]] = {
        "random-small": {
            "hidden_size": 256,
            "num_layers": 6,
            "num_heads": 4,
            "num_kv_heads": 2,
            "num_experts": 16,
            "top_k": 4,
            "moe_intermediate_size": 128,
            "vocab_size": 4096,
        },
        "random-large": {
            "hidden_size": 512,
            "num_layers": 4 if quick else 8,
            "num_heads": 8,
            "num_kv_heads": 4,
            "num_experts": 64,
            "top_k": 8,
            "moe_intermediate_size": 256,
            "vocab_size": 32_000,
        },
    }
    models = []
    for name, shape in shapes.items():
        config = random_config(**shape, head_dim=64, max_position_embeddings=_CONTEXT, dtype=torch.bfloat16)
        try:
            path = write_random_model(directory / name, config, seed=1, tokenizer=True)
        except OSError as error:
            raise CheckpointError(str(directory), f"cannot be written: {error.strerror}", "free some disk") from error
        models.append(measured(path, dtype=dtype))
    return models
