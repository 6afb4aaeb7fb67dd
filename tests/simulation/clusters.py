"""A small model on imagined hardware, and clusters of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from janus.core.admission import AdmissionConfig
from janus.core.batcher_config import BatcherConfig
from janus.core.exchange_cost import LinkCost
from janus.core.planning.hardware import Device, HardwareProfile
from janus.core.planning.host import Host
from janus.core.planning.sizes import ModelSizes
from janus.simulation.config import ClusterConfig

MODEL = ModelSizes(
    name="small",
    hidden=1024,
    layers=12,
    moe_layers=11,
    experts=32,
    top_k=4,
    expert_params=3 * 1024 * 512,
    attention_params=4 * 1024 * 1024,
    shared_params=3 * 1024 * 512,
    dense_params=3 * 1024 * 2048,
    embedding_params=32_000 * 1024,
    head_params=32_000 * 1024,
    kv_elements=512,
    context_flops=4 * 1024,
)
DEVICE = Device(
    name="fast",
    memory_bytes=16e9,
    weight_bytes_s=2e11,
    kv_bytes_s=2e11,
    flops_s=2e13,
    attention_layer_s=1e-4,
    expert_layer_s=5e-5,
    step_s=1e-3,
    token_s=1e-5,
    load_bytes_s=2e8,
)
PROFILE = HardwareProfile(
    name="imagined",
    kind="published",
    devices={"fast": DEVICE},
    intra=LinkCost(message_s=5e-6, latency_s=1e-5, byte_s=1 / 1e10),
    inter=LinkCost(message_s=1e-5, latency_s=2e-5, byte_s=1 / 2e9),
    devices_per_node=4,
)
#: The same device as what all instances of a role share, on two cores that gateway and clients use too.
ONE_HOST = replace(
    PROFILE,
    devices={"cpu": replace(DEVICE, name="cpu", shared_cores=1)},
    host=Host(
        cores=2,
        gateway_request_s=2e-3,
        gateway_message_s=1e-4,
        gateway_token_s=4e-5,
        client_request_s=1e-3,
        client_token_s=2e-5,
    ),
)
BATCHER = BatcherConfig(
    max_running=32, token_budget=128, block_size=16, num_blocks=32 * 40, max_model_len=2048, max_waiting=1024
)


def a_max(experts: int, batch: float) -> float:
    """Even routing: the mean of the distinct experts per instance, and one more."""
    distinct = MODEL.experts * (1 - (1 - MODEL.top_k / MODEL.experts) ** batch)
    return min(distinct / experts + 1.0, float(MODEL.experts))


def cluster(attention: int = 2, experts: int = 4, *, slots: int = 16, **more: Any) -> ClusterConfig:
    """With 16 slots on each of 4 instances every expert has two replicas."""
    settings: dict[str, Any] = {
        "profile": PROFILE,
        "batcher": BATCHER,
        "admission": AdmissionConfig(max_requests=4096, max_tokens=10_000_000),
        "start_s": 1.0,
    }
    return ClusterConfig(
        model=MODEL,
        a_max=a_max,
        attention=attention,
        experts=experts,
        slots=slots,
        **(settings | more),
    )
