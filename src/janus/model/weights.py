"""The attention half's tensors, read and merged into the forms that the math uses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from janus.model.checkpoint import Checkpoint
from janus.model.config import ModelConfig
from janus.model.families import family_named
from janus.model.families.base import AttentionSpec, LatentAttentionSpec, MlpSpec, TensorSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionWeights:
    """One layer of grouped-query attention. ``qkv`` is [(num_heads + 2 * num_kv_heads) * D, H], rows of q, then k, v.

    ``q_norm`` and ``k_norm`` are [D], or as wide as all heads together. ``sinks`` is [num_heads].
    """

    input_norm: torch.Tensor
    post_attention_norm: torch.Tensor
    qkv: torch.Tensor
    qkv_bias: torch.Tensor | None
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None
    o: torch.Tensor
    o_bias: torch.Tensor | None
    sinks: torch.Tensor | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentWeights:
    """One layer of latent attention; every rotary part has its pairs in two halves, as ``apply_rope`` turns them.

    ``a`` is [A + kv_lora_rank + rope, H]: what the residual stream is projected by; its first A rows are q_a, or q
    itself where there is no q_lora_rank. ``q_b`` is [num_heads * qk_head_dim, q_lora_rank] or None. ``k_up``
    [N, nope, rank] and ``v_up`` [N, v, rank] expand a latent to each head's key (without its rotary part) and value.
    """

    input_norm: torch.Tensor
    post_attention_norm: torch.Tensor
    a: torch.Tensor
    a_bias: torch.Tensor | None
    q_a_norm: torch.Tensor | None
    q_b: torch.Tensor | None
    kv_a_norm: torch.Tensor
    k_up: torch.Tensor
    v_up: torch.Tensor
    o: torch.Tensor
    o_bias: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class DenseMlpWeights:
    """The MLP of a layer without experts, or a shared expert: gate_up [2 * I, H] (gate rows first), down [H, I]."""

    gate_up: torch.Tensor
    down: torch.Tensor


@dataclass(frozen=True, slots=True)
class SharedExpertWeights:
    """An expert that every row goes through; ``gate`` f32 [H] scales its output by ``sigmoid(gate @ x)``."""

    mlp: DenseMlpWeights
    gate: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class RouterWeights:
    """The gate of a MoE layer: weight [E, H] in the serving dtype, biases f32 [E]; see ``RouterSpec``."""

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    correction: torch.Tensor | None = None


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

    def lm_head_blocks(self, rows: int) -> Iterator[torch.Tensor] | None:
        """``lm_head`` on the CPU in blocks of ``rows`` rows, each read when it is asked for."""
        spec = self._model.lm_head
        return None if spec is None else self._checkpoint.read_blocks(spec.name, rows, self.dtype)

    def router(self, layer: int) -> RouterWeights:
        """The gate of MoE layer ``layer``."""
        spec = self._family.router(self.config, layer)
        return RouterWeights(self._read(spec.weight), self._f32(spec.bias), self._f32(spec.correction))

    def attention_spec(self, layer: int) -> AttentionSpec:
        """Names and shapes of the attention of ``layer``, in a model of grouped-query attention."""
        spec = self._family.attention(self.config, layer)
        assert isinstance(spec, AttentionSpec)
        return spec

    def attention(self, layer: int) -> AttentionWeights:
        """The attention of ``layer``, in a model of grouped-query attention."""
        spec = self.attention_spec(layer)
        biases = [bias for bias in (spec.q_bias, spec.k_bias, spec.v_bias) if bias is not None]
        return AttentionWeights(
            input_norm=self._read(spec.input_norm),
            post_attention_norm=self._read(spec.post_attention_norm),
            qkv=self._joined(spec.q, spec.k, spec.v),
            qkv_bias=torch.cat([self._read(bias) for bias in biases]) if biases else None,
            q_norm=self._optional(spec.q_norm),
            k_norm=self._optional(spec.k_norm),
            o=self._read(spec.o),
            o_bias=self._optional(spec.o_bias),
            sinks=self._optional(spec.sinks),
        )

    def latent_attention(self, layer: int) -> LatentWeights:
        """The attention of ``layer``, in a model of latent attention."""
        spec, shape = self._family.attention(self.config, layer), self.config.latent
        assert isinstance(spec, LatentAttentionSpec) and shape is not None
        heads, rope = self.config.num_heads, shape.qk_rope_head_dim
        halves = self._in_halves if shape.rope_interleaved else lambda rows: rows

        def turn_last(matrix: torch.Tensor, groups: int) -> torch.Tensor:
            """The last ``rope`` rows of each of ``groups`` equal parts, with their pairs in halves."""
            parts = matrix.view(groups, -1, *matrix.shape[1:])
            return torch.cat((parts[:, :-rope], halves(parts[:, -rope:])), dim=1).flatten(0, 1)

        kv_a = turn_last(self._read(spec.kv_a), 1)
        kv_a_bias = None if spec.kv_a_bias is None else turn_last(self._read(spec.kv_a_bias), 1)
        if spec.q_a is None:
            assert spec.q is not None
            first, q_b = turn_last(self._read(spec.q), heads), None
        else:
            assert spec.q_b is not None
            first, q_b = self._read(spec.q_a), turn_last(self._read(spec.q_b), heads)
        a_bias = None
        if kv_a_bias is not None:
            q_a_bias = torch.zeros_like(first[:, 0]) if spec.q_a_bias is None else self._read(spec.q_a_bias)
            a_bias = torch.cat((q_a_bias, kv_a_bias))
        kv_b = self._read(spec.kv_b).view(heads, -1, shape.kv_lora_rank)
        return LatentWeights(
            input_norm=self._read(spec.input_norm),
            post_attention_norm=self._read(spec.post_attention_norm),
            a=torch.cat((first, kv_a)),
            a_bias=a_bias,
            q_a_norm=self._optional(spec.q_a_norm),
            q_b=q_b,
            kv_a_norm=self._read(spec.kv_a_norm),
            k_up=kv_b[:, : shape.qk_nope_head_dim].contiguous(),
            v_up=kv_b[:, shape.qk_nope_head_dim :].contiguous(),
            o=self._read(spec.o),
            o_bias=self._optional(spec.o_bias),
        )

    @staticmethod
    def _in_halves(parts: torch.Tensor) -> torch.Tensor:
        """[G, R, ...] with rows 0, 2, 4, ... of each group before 1, 3, 5, ...

        Interleaved rotary embedding turns the pairs (0, 1), (2, 3), ...; scores are sums over pairs, so queries and
        keys may have them in another order, the same for both, and one rotation serves every family.
        """
        return torch.cat((parts[:, 0::2], parts[:, 1::2]), dim=1)

    def dense_mlp(self, layer: int) -> DenseMlpWeights:
        """The MLP of a layer without experts."""
        return self._mlp(self._family.dense_mlp(self.config, layer))

    def shared_expert(self, layer: int) -> SharedExpertWeights | None:
        """The shared expert of MoE layer ``layer``, where the model has one."""
        if not self.config.shared_intermediate_size:
            return None
        spec = self._family.shared_expert(self.config, layer)
        gate = self._f32(spec.gate)
        return SharedExpertWeights(self._mlp(spec.mlp), None if gate is None else gate[0])

    def _mlp(self, spec: MlpSpec) -> DenseMlpWeights:
        return DenseMlpWeights(self._joined(spec.gate, spec.up), self._read(spec.down))

    def _read(self, spec: TensorSpec) -> torch.Tensor:
        return self._checkpoint.read(spec.name, self.dtype, self.device)

    def _joined(self, *specs: TensorSpec) -> torch.Tensor:
        return self._checkpoint.read_joined([spec.name for spec in specs], self.dtype, self.device)

    def _f32(self, spec: TensorSpec | None) -> torch.Tensor | None:
        return None if spec is None else self._checkpoint.read(spec.name, torch.float32, self.device)

    def _optional(self, spec: TensorSpec | None) -> torch.Tensor | None:
        return None if spec is None else self._read(spec)
