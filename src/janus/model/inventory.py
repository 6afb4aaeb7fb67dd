"""What a model is made of, by role: elements from its config, bytes from its files. Free of torch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from janus.model.config import ModelConfig
from janus.model.families import family_named
from janus.model.families.base import TensorSpec, expert_tensors, tensors_in

#: Role of everything that expert instances hold; all others are on attention instances.
EXPERTS = "routed experts"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """All tensors of one role, over all layers."""

    role: str
    #: Of the model, whatever the form that it is stored in.
    parameters: int
    #: As they are stored, by name.
    tensors: tuple[TensorSpec, ...]


def parts_of(config: ModelConfig, stored: frozenset[str] = frozenset()) -> list[Part]:
    """Return the parts of a model; ``stored`` are the names in its checkpoint, where there is one."""
    family = family_named(config.family)
    model = family.model(config)
    layers, moe_layers = range(config.num_layers), config.moe_layers
    named: list[tuple[str, list[TensorSpec]]] = [
        ("embedding", [model.embedding]),
        ("attention", [spec for layer in layers for spec in tensors_in(family.attention(config, layer))]),
        ("dense MLPs", [spec for layer in config.dense_layers for spec in tensors_in(family.dense_mlp(config, layer))]),
        ("routers", [spec for layer in moe_layers for spec in tensors_in(family.router(config, layer))]),
        ("shared experts", list(_shared(config))),
        ("final norm and output", [*tensors_in(model.final_norm), *tensors_in(model.lm_head)]),
    ]
    parts = [
        Part(role=role, parameters=sum(math.prod(spec.shape) for spec in specs), tensors=tuple(specs))
        for role, specs in named
        if specs
    ]
    experts = tuple(spec for layer in layers for spec in expert_tensors(family, config, layer, stored))
    count = config.expert_parameters * config.num_experts * config.num_moe_layers
    return [*parts, Part(role=EXPERTS, parameters=count, tensors=experts)]


def _shared(config: ModelConfig) -> Iterator[TensorSpec]:
    if config.shared_intermediate_size:
        family = family_named(config.family)
        for layer in config.moe_layers:
            yield from tensors_in(family.shared_expert(config, layer))


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """What every instance of each role holds, in bytes, where a model is served by m:n instances in one dtype."""

    attention_instance: int
    kv_per_token: int
    one_expert: int
    slots: int
    expert_instance: int


def placed(config: ModelConfig, *, experts: int, dtype_bytes: int) -> Placed:
    """Return what instances hold with every expert once on ``experts`` expert instances, biases of scores in f32."""
    parts = parts_of(config)
    attention = sum(
        math.prod(spec.shape) * (4 if spec.full_precision else dtype_bytes)
        for part in parts
        if part.role != EXPERTS
        for spec in part.tensors
    )
    one_expert = config.expert_parameters * dtype_bytes
    slots = -(-config.num_experts // experts)
    return Placed(
        attention_instance=attention,
        kv_per_token=config.kv_layout.bytes_per_token(dtype_bytes),
        one_expert=one_expert,
        slots=slots,
        expert_instance=slots * config.num_moe_layers * one_expert,
    )
