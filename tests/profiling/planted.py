"""Observations of a machine that behaves exactly, or nearly, as a profile says."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import product
from typing import Any

from janus.core.exchange_cost import LinkCost
from janus.core.planning.catalog import sizes_of
from janus.core.planning.hardware import Device, HardwareProfile
from janus.core.planning.performance import Load
from janus.core.planning.sizes import ModelSizes
from janus.profiling.observations import PARTS, Observation

PLANTED = Device(
    name="cpu",
    memory_bytes=8e9,
    weight_bytes_s=1.2e10,
    kv_bytes_s=6e9,
    flops_s=9e10,
    attention_layer_s=9e-5,
    expert_layer_s=4e-5,
    step_s=4e-4,
    token_s=1.5e-5,
    attention_row_s=3e-6,
    row_s=1.2e-6,
    exposed=0.4,
    shared_cores=2,
)
LINK = LinkCost(message_s=1.5e-5, latency_s=3e-5, byte_s=4e-10)


def profile(device: Device = PLANTED, link: LinkCost = LINK) -> HardwareProfile:
    """A machine of such devices."""
    return HardwareProfile(
        name="planted", kind="measured", devices={device.name: device}, intra=link, inter=link, devices_per_node=256
    )


def model(hidden: int, experts: int, width: int, layers: int) -> ModelSizes:
    """A Qwen3-MoE in float32."""
    return sizes_of(
        {
            "model_type": "qwen3_moe",
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 64,
            "num_experts": experts,
            "num_experts_per_tok": 4,
            "moe_intermediate_size": width,
            "vocab_size": 32000,
            "torch_dtype": "float32",
        }
    )


SMALL, LARGE = model(256, 16, 128, 6), model(512, 64, 256, 8)


def observe(machine: HardwareProfile, draw: random.Random, *, noise: float) -> list[Observation]:
    """What ``janus profile`` would see there, each part of a step off by some ``noise``."""
    seen = []
    for sizes, experts, batch, context in product((SMALL, LARGE), (1, 2, 4), (1, 4, 16, 64), (32, 400)):
        activated = sizes.experts * (1 - (1 - sizes.top_k / sizes.experts) ** batch) / experts
        point = Observation(
            model=sizes,
            attention=1,
            experts=experts,
            load=Load(batch=batch, context=context),
            a_max=activated,
            **dict.fromkeys(PARTS, 0.0),
            low_s=0,
            high_s=0,
        )
        seen.append(_filled(point, machine, draw, noise))
    for sizes, prefill in product((SMALL, LARGE), (128, 512)):
        point = replace(
            seen[0],
            model=sizes,
            load=Load(batch=0, context=0, prefill=prefill, prefill_context=256),
            a_max=sizes.experts,
        )
        seen.append(_filled(point, machine, draw, noise))
    return seen


def _filled(point: Observation, machine: HardwareProfile, draw: random.Random, noise: float) -> Observation:
    step = point.predicted(machine)
    parts: dict[str, Any] = {part: float(getattr(step, part)) for part in PARTS}
    parts["attention_s"] -= float(step.hidden_s)
    longer = float(step.total_s / (step.total_s - step.waiting_s))
    return replace(point, **{part: value * longer * (1 + draw.gauss(0, noise)) for part, value in parts.items()})
