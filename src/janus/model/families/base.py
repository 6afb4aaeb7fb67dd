"""What a model family tells the rest: how to parse its config, and where its tensors are.

The shared blocks (attention, gates, dense MLP, shared and routed experts) ask for tensors by role; a family answers
with names and shapes. Every shape is that of the stored tensor, [out_features, in_features] for a matrix.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Protocol

from janus.model.config import ModelConfig


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor that must be in the checkpoint."""

    name: str
    shape: tuple[int, ...]
    #: Stored and used in f32, whatever the dtype of the rest.
    full_precision: bool = False
    #: Bytes that stand for something else; they are in uint8.
    codes: bool = False


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """One layer of grouped-query attention with its two norms; what a family does not have is None.

    ``q_norm`` and ``k_norm`` are as wide as a head, or as all heads where these are normed together.
    """

    input_norm: TensorSpec
    post_attention_norm: TensorSpec
    q: TensorSpec
    k: TensorSpec
    v: TensorSpec
    o: TensorSpec
    q_norm: TensorSpec | None = None
    k_norm: TensorSpec | None = None
    q_bias: TensorSpec | None = None
    k_bias: TensorSpec | None = None
    v_bias: TensorSpec | None = None
    o_bias: TensorSpec | None = None
    #: [num_heads], logits without a value.
    sinks: TensorSpec | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentAttentionSpec:
    """One layer of latent attention with its two norms. Either ``q``, or ``q_a``, ``q_a_norm`` and ``q_b``."""

    input_norm: TensorSpec
    post_attention_norm: TensorSpec
    #: [num_heads * qk_head_dim, H].
    q: TensorSpec | None
    q_a: TensorSpec | None
    q_a_bias: TensorSpec | None
    q_a_norm: TensorSpec | None
    #: [num_heads * qk_head_dim, q_lora_rank].
    q_b: TensorSpec | None
    #: [kv_lora_rank + qk_rope_head_dim, H].
    kv_a: TensorSpec
    kv_a_bias: TensorSpec | None
    kv_a_norm: TensorSpec
    #: [num_heads * (qk_nope_head_dim + v_head_dim), kv_lora_rank].
    kv_b: TensorSpec
    o: TensorSpec
    o_bias: TensorSpec | None


@dataclass(frozen=True, slots=True)
class MlpSpec:
    """A gated MLP: ``down(silu(gate(x)) * up(x))``. One expert, a shared expert, or the MLP of a dense layer."""

    gate: TensorSpec
    up: TensorSpec
    down: TensorSpec


@dataclass(frozen=True, slots=True)
class SharedExpertSpec:
    """The expert that every row goes through; ``gate`` [1, H] scales its output by ``sigmoid(gate(x))``."""

    mlp: MlpSpec
    gate: TensorSpec | None = None


@dataclass(frozen=True, slots=True)
class RouterSpec:
    """The gate of a MoE layer: logits ``weight @ x + bias``; ``correction`` is added to scores to choose by them."""

    weight: TensorSpec  # [E, H]
    bias: TensorSpec | None = None  # [E]
    correction: TensorSpec | None = None  # [E]


@dataclass(frozen=True, slots=True)
class FusedExpertsSpec:
    """All experts of a layer in tensors of one more dimension.

    Gate rows come before up rows, or by turns where ``interleaved``. Where ``transposed`` both products are stored as
    [E, in, out]. With scales they are stored in MXFP4 (``model/mxfp4.py``), and the shapes are those of its codes.
    """

    gate_up: TensorSpec  # [E, 2 * I, H]
    down: TensorSpec  # [E, H, I]
    gate_up_bias: TensorSpec | None = None  # [E, 2 * I]
    down_bias: TensorSpec | None = None  # [E, H]
    gate_up_scales: TensorSpec | None = None
    down_scales: TensorSpec | None = None
    interleaved: bool = False
    transposed: bool = False


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """The tensors around the layers. ``lm_head`` is None where it is tied to the embedding."""

    embedding: TensorSpec
    final_norm: TensorSpec
    lm_head: TensorSpec | None


class Family(Protocol):
    """The adapter of one model family."""

    def parse_config(self, raw: Mapping[str, Any], generation: Mapping[str, Any], where: str) -> ModelConfig:
        """Return the parsed config. Raises CheckpointError naming the key at fault; ``where`` is the file."""

    def to_json(self, config: ModelConfig) -> dict[str, Any]:
        """Return a ``config.json`` object for ``config``: the inverse of ``parse_config``."""

    def model(self, config: ModelConfig) -> ModelSpec:
        """Return the tensors outside the layers."""

    def attention(self, config: ModelConfig, layer: int) -> AttentionSpec | LatentAttentionSpec:
        """Return the attention tensors of ``layer``: latent ones where ``config.latent`` is set."""

    def dense_mlp(self, config: ModelConfig, layer: int) -> MlpSpec:
        """Return the MLP tensors of a layer without experts."""

    def shared_expert(self, config: ModelConfig, layer: int) -> SharedExpertSpec:
        """Return the shared expert of a MoE layer, where ``config.shared_intermediate_size`` says that there is one."""

    def router(self, config: ModelConfig, layer: int) -> RouterSpec:
        """Return the gate of a MoE layer."""

    def expert(self, config: ModelConfig, layer: int, expert: int) -> MlpSpec:
        """Return the tensors of one expert, stored one by one."""

    @property
    def always_fused(self) -> bool:
        """Whether experts are stored in no other form than that of ``fused_experts``."""

    def fused_experts(self, config: ModelConfig, layer: int) -> FusedExpertsSpec | None:
        """Return the stacked form of a layer's experts, if the family has one."""


def tensors_in(spec: object) -> Iterator[TensorSpec]:
    """Yield every tensor of ``spec``, one of the dataclasses above, in the order of its fields."""
    if isinstance(spec, TensorSpec):
        yield spec
    elif is_dataclass(spec):
        for item in fields(spec):
            yield from tensors_in(getattr(spec, item.name))


def attention_tensors(family: Family, config: ModelConfig, layer: int) -> Iterator[TensorSpec]:
    """Yield the tensors of ``layer`` that attention instances hold: all but the routed experts."""
    yield from tensors_in(family.attention(config, layer))
    if layer not in config.moe_index:
        yield from tensors_in(family.dense_mlp(config, layer))
        return
    yield from tensors_in(family.router(config, layer))
    if config.shared_intermediate_size:
        yield from tensors_in(family.shared_expert(config, layer))


def expert_tensors(
    family: Family, config: ModelConfig, layer: int, stored: Container[str] = frozenset()
) -> Iterator[TensorSpec]:
    """Yield the tensors of a layer's experts: fused where ``stored`` has them so or they are always, or one by one."""
    if layer not in config.moe_index:
        return
    fused = family.fused_experts(config, layer)
    if fused is not None and (fused.gate_up.name in stored or family.always_fused):
        yield from tensors_in(fused)
        return
    for expert in range(config.num_experts):
        yield from tensors_in(family.expert(config, layer, expert))
