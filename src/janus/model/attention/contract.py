"""``AttentionLayers``: attention of all layers, whatever its kind, and which of the kinds serves a model."""

from __future__ import annotations

from typing import Protocol

import torch

from janus.model.attention.grouped_cpu import CpuGroupedAttention
from janus.model.attention.grouped_torch import TorchGroupedAttention
from janus.model.attention.latent_cpu import CpuLatentAttention
from janus.model.attention.latent_torch import TorchLatentAttention
from janus.model.batch import StepBatch
from janus.model.kernels.library import Library
from janus.model.kv_cache import PagedKVCache
from janus.model.weights import WeightReader


class AttentionLayers(Protocol):
    """Norm, attention and residual of every layer of a model."""

    def prepare(self, batch: StepBatch, cos_sin_TR: torch.Tensor) -> None:
        """Compute what all layers of the step share, and keep it in ``batch.prepared``.

        ``cos_sin_TR`` is f32 [T, rotary_dim]: cos, then sin, of each row's position.
        """

    def attention(
        self, layer: int, h: torch.Tensor, batch: StepBatch, kv: PagedKVCache
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Residual stream after attention, and the normed MLP input, both [T, H]; writes the KV cache."""


def attention_layers(reader: WeightReader, library: Library | None) -> AttentionLayers:
    """Read the attention of all layers, of the kind that the config says, for the kernels where these can run it.

    Raises:
        CheckpointError: a tensor cannot be read.
    """
    if reader.config.latent is not None:
        if library is None or not CpuLatentAttention.supports(reader):
            return TorchLatentAttention(reader)
        return CpuLatentAttention(library, reader)
    return TorchGroupedAttention(reader) if library is None else CpuGroupedAttention(library, reader)
