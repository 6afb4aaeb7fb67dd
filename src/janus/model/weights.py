"""The attention half's tensors, read and merged into the forms that the math uses."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from janus.model.checkpoint import Checkpoint
from janus.model.config import ModelConfig
from janus.model.families import family_named
from janus.model.families.base import TensorSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionWeights:
    """One layer's attention. ``qkv`` is [(num_heads + 2 * num_kv_heads) * D, H], rows of q, then k, then v."""

    input_norm: torch.Tensor
    post_attention_norm: torch.Tensor
    qkv: torch.Tensor
    qkv_bias: torch.Tensor | None
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None
    o: torch.Tensor
    o_bias: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class DenseMlpWeights:
    """The MLP of a layer without experts: gate_up [2 * I, H] (gate rows first), down [H, I]."""

    gate_up: torch.Tensor
    down: torch.Tensor


class WeightReader:
    """Reads the attention half of a checkpoint, tensor by tensor, in the serving dtype."""

    def __init__(self, checkpoint: Checkpoint, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> None:
        self.config = config
        self.dtype = dtype
        self.device = device
        self._checkpoint = checkpoint
        self._family = family_named(config.family)
        self._model = self._family.model(config)

    def embedding(self) -> torch.Tensor:
        """[vocab, H]."""
        return self._read(self._model.embedding)

    def final_norm(self) -> torch.Tensor:
        """[H]."""
        return self._read(self._model.final_norm)

    def lm_head(self) -> torch.Tensor | None:
        """[vocab, H], or None where the embedding is used."""
        return self._optional(self._model.lm_head)

    def router(self, layer: int) -> torch.Tensor:
        """[E, H]."""
        return self._read(self._family.router(self.config, layer))

    def attention(self, layer: int) -> AttentionWeights:
        """The attention of ``layer``."""
        spec = self._family.attention(self.config, layer)
        biases = [bias for bias in (spec.q_bias, spec.k_bias, spec.v_bias) if bias is not None]
        return AttentionWeights(
            input_norm=self._read(spec.input_norm),
            post_attention_norm=self._read(spec.post_attention_norm),
            qkv=torch.cat([self._read(part) for part in (spec.q, spec.k, spec.v)]),
            qkv_bias=torch.cat([self._read(bias) for bias in biases]) if biases else None,
            q_norm=self._optional(spec.q_norm),
            k_norm=self._optional(spec.k_norm),
            o=self._read(spec.o),
            o_bias=self._optional(spec.o_bias),
        )

    def dense_mlp(self, layer: int) -> DenseMlpWeights:
        """The MLP of a layer without experts."""
        spec = self._family.dense_mlp(self.config, layer)
        return DenseMlpWeights(torch.cat((self._read(spec.gate), self._read(spec.up))), self._read(spec.down))

    def _read(self, spec: TensorSpec) -> torch.Tensor:
        return self._checkpoint.read(spec.name, self.dtype, self.device)

    def _optional(self, spec: TensorSpec | None) -> torch.Tensor | None:
        return None if spec is None else self._read(spec)
