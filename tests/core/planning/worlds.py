"""Models, hardware and deployments that hypothesis draws from, and a table of a_max that needs no Monte Carlo."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import strategies as st

from janus.core.exchange_cost import LinkCost
from janus.core.planning.activation import AMaxTable
from janus.core.planning.hardware import Device, HardwareProfile
from janus.core.planning.performance import Deployment
from janus.core.planning.sizes import ModelSizes

#: DeepSeek-V2's shape.
MODEL = ModelSizes(
    name="deepseek-v2-like",
    hidden=5120,
    layers=60,
    moe_layers=59,
    experts=160,
    top_k=6,
    expert_params=3 * 5120 * 1536,
    attention_params=149_000_000,
    shared_params=48_000_000,
    dense_params=3 * 5120 * 12288,
    embedding_params=524_288_000,
    head_params=524_293_120,
    kv_elements=576,
    context_flops=278_528,
    kv_parts=1,
)
DEVICE = Device(
    name="gpu",
    memory_bytes=85e9,
    weight_bytes_s=1.8e12,
    kv_bytes_s=1.8e12,
    flops_s=4.9e14,
    attention_layer_s=4e-4,
    expert_layer_s=4e-4,
    row_s=1.5e-6,
    cost_per_hour=2.69,
)
PROFILE = HardwareProfile(
    name="gpus",
    kind="published",
    devices={"gpu": DEVICE},
    intra=LinkCost(message_s=2e-6, latency_s=3e-6, byte_s=2.8e-12),
    inter=LinkCost(message_s=2e-6, latency_s=5e-6, byte_s=2.5e-11),
    links_per_node=8,
)


def spread(experts: Any, batch: Any, *, model: ModelSizes = MODEL, slots: int = 27) -> Any:
    """a_max of independent, equally popular experts that replicas balance perfectly; elementwise."""
    active = model.experts * (1 - (1 - model.top_k / model.experts) ** batch)
    return np.minimum(slots, np.maximum(1.0, active / experts))


def table_of(model: ModelSizes, slots: int, most: int) -> AMaxTable:
    """``spread`` as a table."""
    first = -(-model.experts // slots)
    instances = tuple(range(first, max(most, first) + 1))
    batches = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
    mean = np.array([[float(spread(n, b, model=model, slots=slots)) for b in batches] for n in instances])
    return AMaxTable(
        slots=slots, instances=instances, batches=batches, mean=mean, error=np.zeros_like(mean), bound=mean + 1
    )


def deployment(attention: int, experts: int, **more: Any) -> Deployment:
    return Deployment(
        attention=attention, experts=experts, **({"attention_device": DEVICE, "expert_device": DEVICE} | more)
    )


@st.composite
def models(draw: st.DrawFn) -> ModelSizes:
    """Any shape, from a toy's to the largest; attention and experts of any size relative to each other."""
    layers = draw(st.integers(1, 80))
    experts = draw(st.integers(2, 96))
    hidden = draw(st.sampled_from([64, 1024, 7168]))
    return ModelSizes(
        name="drawn",
        hidden=hidden,
        layers=layers,
        moe_layers=draw(st.integers(1, layers)),
        experts=experts,
        top_k=draw(st.integers(1, min(8, experts))),
        expert_params=draw(st.integers(1_000, 50_000_000)),
        attention_params=draw(st.integers(1_000, 200_000_000)),
        shared_params=draw(st.integers(0, 50_000_000)),
        dense_params=draw(st.integers(0, 200_000_000)),
        embedding_params=draw(st.integers(0, 500_000_000)),
        head_params=hidden * draw(st.integers(10, 100_000)),
        kv_elements=draw(st.integers(16, 4096)),
        context_flops=draw(st.integers(64, 300_000)),
        kv_parts=draw(st.sampled_from([0, 1, 4, 8])),
    )


@st.composite
def devices(draw: st.DrawFn, name: str = "gpu", *, shared: bool = False) -> Device:
    seconds = st.floats(0, 1e-3)
    return Device(
        name=name,
        memory_bytes=draw(st.sampled_from([8e9, 24e9, 80e9, 192e9])),
        weight_bytes_s=draw(st.floats(1e10, 5e12)),
        kv_bytes_s=draw(st.floats(1e10, 5e12)),
        flops_s=draw(st.floats(1e11, 1e15)),
        attention_layer_s=draw(seconds),
        expert_layer_s=draw(seconds),
        step_s=draw(seconds),
        token_s=draw(st.floats(0, 1e-5)),
        attention_row_s=draw(st.floats(0, 1e-5)),
        row_s=draw(st.floats(0, 1e-5)),
        exposed=draw(st.sampled_from([0.0, 0.0, 0.4, 1.0])),
        cost_per_hour=draw(st.floats(0.1, 5)),
        shared_cores=draw(st.integers(1, 8)) if shared else 0,
    )


@st.composite
def links(draw: st.DrawFn) -> LinkCost:
    return LinkCost(
        message_s=draw(st.floats(0, 1e-4)), latency_s=draw(st.floats(0, 1e-4)), byte_s=draw(st.floats(1e-12, 1e-9))
    )


@st.composite
def profiles(draw: st.DrawFn, *, shared: bool = False, kinds: tuple[str, ...] = ("gpu",)) -> HardwareProfile:
    inter = draw(links())
    return HardwareProfile(
        name="drawn",
        kind="published",
        devices={name: draw(devices(name, shared=shared)) for name in kinds},
        inter=inter,
        intra=replace(inter, **{name: draw(st.floats(0, 1)) * getattr(inter, name) for name in inter.__slots__}),
        devices_per_node=draw(st.sampled_from([1, 4, 8])),
        links_per_node=draw(st.sampled_from([1, 8])),
    )
