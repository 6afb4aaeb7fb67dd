"""Shared by the model tests: few threads, since the machine may have few cores and the models are tiny."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from janus.model.config import ModelConfig
from janus.model.random_model import random_config, write_random_model


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def random_model(tmp_path: Path) -> Callable[..., Path]:
    """Write a small random checkpoint; keywords go to ``random_config`` or are those of ``write_random_model``."""

    def write(**options: object) -> Path:
        own = {key: options.pop(key) for key in ("seed", "std", "shards", "tokenizer") if key in options}
        config: ModelConfig = random_config(**options)  # type: ignore[arg-type]
        return write_random_model(tmp_path / "model", config, **own)  # type: ignore[arg-type]

    return write
