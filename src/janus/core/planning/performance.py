"""How long a decode step takes: attention, exchange and experts, layer by layer.

Equation 1 of arXiv 2512.13525 (section 3.5), per layer: T_attn = max(c_a, alpha b + c_kv b S) with b = B / n_a tokens
per attention instance and S tokens of context each; T_moe = beta a_max(n_e, B) + c_e; T_comm. The coefficients come
from the rates of the device and the sizes of the model:

c_a     the weights of the layer, read once per step        attention_params * width / weight_bytes_s
alpha   the layer's products, per token                     2 * attention_params / flops_s
c_kv    the KV cache of one token of context                kv_elements * width / kv_bytes_s
beta    the weights of one expert                           expert_params * width / weight_bytes_s
gamma   the products of one row in one expert (not in the paper: prefill and large batches need it)

Weights and products overlap on a device, so the larger of the two counts; the KV cache is read besides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from janus.core.exchange_cost import DispatchShape, predict
from janus.core.exchange_routes import MODES, Mode
from janus.core.planning.hardware import Device, HardwareProfile
from janus.core.planning.sizes import ModelSizes


class AMax(Protocol):
    """Mean a_max per MoE layer of ``batch`` tokens on ``experts`` instances; see ``activation.py``."""

    def __call__(self, experts: int, batch: float) -> float:
        """Return it; at most the slots of an instance, never falling as ``batch`` grows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """A cluster, as the performance model sees it."""

    #: Instances of each role, and the kinds of devices that they run on.
    attention: int
    experts: int
    attention_device: Device
    expert_device: Device
    #: Devices per attention instance.
    tensor_parallel: int = 1
    #: Micro-batches that take turns.
    micro_batches: int = 1
    #: Both roles run on the same devices, as in monolithic systems: ``attention * tensor_parallel == experts``.
    colocated: bool = False

    @property
    def devices(self) -> int:
        """Devices in all."""
        return self.attention * self.tensor_parallel + (0 if self.colocated else self.experts)

    @property
    def cost_per_hour(self) -> float:
        """What they cost."""
        attention = self.attention * self.tensor_parallel * self.attention_device.cost_per_hour
        return attention + (0.0 if self.colocated else self.experts * self.expert_device.cost_per_hour)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What one step computes, over all attention instances."""

    #: Streams that decode: one token each. May be fractional, as a mean.
    batch: float
    #: Tokens of context per stream.
    context: float
    #: Prompt tokens that the same step computes.
    prefill: float = 0.0

    @property
    def rows(self) -> float:
        """Tokens computed."""
        return self.batch + self.prefill


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """Where a step's seconds go, all layers together."""

    attention_s: float
    exchange_s: float
    experts_s: float
    #: Dense layers, output matrix, sampling and bookkeeping.
    other_s: float
    #: What micro-batches hide behind each other.
    hidden_s: float = 0.0
    #: Mean a_max that it reckons with, and the way of exchange.
    a_max: float = 0.0
    exchange: Mode = "direct"

    @property
    def total_s(self) -> float:
        """The step; for a stream that decodes, its TPOT."""
        return self.attention_s + self.exchange_s + self.experts_s + self.other_s - self.hidden_s


def step_time(
    model: ModelSizes,
    profile: HardwareProfile,
    deployment: Deployment,
    load: Load,
    *,
    a_max: AMax,
    at_experts: Load | None = None,
    modes: Sequence[Mode] = MODES,
) -> StepTime:
    """Return the time of one step of ``load`` on ``deployment``.

    With several micro-batches, attention, exchange and experts of different ones overlap: a layer of all of them takes
    as long as the pool that is busy longest, or as one of them alone takes from end to end.

    Args:
        at_experts: what the experts compute for all attention instances together, where these differ: ``load`` is
            then what there would be if all were like the one that is asked for. The same as ``load`` unless given.
        modes: ways to exchange that the system has.
    """
    parts = deployment.micro_batches
    part, together = _part(load, parts), _part(at_experts or load, parts)
    experts_activated = a_max(deployment.experts, max(1.0, together.rows))
    attention, shared = attention_layer_s(model, profile, deployment, part)
    experts = expert_layer_s(model, deployment, together, experts_activated)
    mode, exchange = exchange_layer_s(model, profile, deployment, part, modes)
    moe, layers = model.moe_layers, model.layers
    if parts == 1:
        # The shared experts run while activations travel and the routed ones compute, unless on the same devices.
        hidden = moe * min(shared, exchange if deployment.colocated else exchange + experts)
    else:
        alone = attention + shared + exchange + experts
        hidden = moe * (parts * alone - max(parts * (attention + shared), parts * experts, alone))
    return StepTime(
        attention_s=parts * (layers * attention + moe * shared),
        exchange_s=parts * moe * exchange,
        experts_s=parts * moe * experts,
        other_s=other_s(model, deployment, load),
        hidden_s=max(0.0, hidden),
        a_max=experts_activated,
        exchange=mode,
    )


def attention_layer_s(
    model: ModelSizes, profile: HardwareProfile, deployment: Deployment, load: Load
) -> tuple[float, float]:
    """Return the seconds of one layer's attention, and of its shared experts and router."""
    device, tp = deployment.attention_device, deployment.tensor_parallel
    rows, streams = load.rows / deployment.attention, load.batch / deployment.attention
    context = streams * load.context
    read = context * model.kv_elements * model.kv_width / device.kv_bytes_s / tp
    scores = (context + rows * load.prefill / max(load.rows, 1.0) * load.context) * model.context_flops / device.flops_s
    attention = device.attention_layer_s + _products_s(model.attention_params, model.weight_width, rows, device, tp)
    attention += max(read, scores / tp)
    if tp > 1:
        attention += 2 * _all_reduce_s(rows * model.row_bytes, tp, profile)
    shared = _products_s(model.shared_params, model.weight_width, rows, device, tp)
    return _shared_out(attention, deployment.attention, device), _shared_out(shared, deployment.attention, device)


def expert_layer_s(model: ModelSizes, deployment: Deployment, load: Load, a_max: float) -> float:
    """Return the seconds of one layer's experts on the instance that activates the most of them."""
    device = deployment.expert_device
    choices = load.rows * model.top_k / deployment.experts
    weights = a_max * model.expert_bytes / device.weight_bytes_s
    products = choices * 2 * model.expert_params / device.flops_s
    seconds = device.expert_layer_s + max(weights, products) + choices * device.row_s
    return _shared_out(seconds, deployment.experts, device)


def exchange_layer_s(
    model: ModelSizes, profile: HardwareProfile, deployment: Deployment, load: Load, modes: Sequence[Mode] = MODES
) -> tuple[Mode, float]:
    """Return the quickest of ``modes`` for one layer's exchange, there and back, and its seconds."""
    shape = dispatch_shape(model, profile, deployment, load)
    near = deployment.devices <= profile.devices_per_node
    inter, intra = profile.links(members=shape.members, near=near)
    times = {mode: predict(mode, shape, inter=inter, intra=intra) for mode in modes}
    best = min(times, key=lambda mode: times[mode])
    return best, times[best]


def dispatch_shape(model: ModelSizes, profile: HardwareProfile, deployment: Deployment, load: Load) -> DispatchShape:
    """Return what one attention instance sends in one layer, as a mean over tokens that choose evenly."""
    n, per_node = deployment.experts, profile.devices_per_node
    nodes = -(-n // per_node)
    rows = load.rows / deployment.attention
    row = model.row_bytes

    def nbytes(places: int) -> int:
        """Bytes to ``places`` that the k experts of a token are spread over."""
        return round(rows * row * places * (1 - (1 - 1 / places) ** model.top_k))

    return DispatchShape(
        instances=n,
        instance_bytes=nbytes(n),
        instance_answer_bytes=nbytes(n),
        nodes=nodes,
        node_bytes=nbytes(nodes),
        node_answer_bytes=nbytes(nodes),
        batch_bytes=round(rows * row),
        largest_node=min(n, per_node),
        members=min(deployment.attention, per_node),
        sources=deployment.attention,
    )


def other_s(model: ModelSizes, deployment: Deployment, load: Load) -> float:
    """Return the seconds of a step outside attention and routed experts."""
    device, tp = deployment.attention_device, deployment.tensor_parallel
    rows, streams = load.rows / deployment.attention, load.batch / deployment.attention
    dense = (model.layers - model.moe_layers) * _products_s(model.dense_params, model.weight_width, rows, device, tp)
    head = _products_s(model.head_params, model.weight_width, streams, device, tp)
    seconds = device.step_s + rows * device.token_s + dense + head
    return _shared_out(seconds, deployment.attention, device)


def _part(load: Load, parts: int) -> Load:
    return Load(batch=load.batch / parts, context=load.context, prefill=load.prefill / parts)


def _products_s(params: float, width: float, rows: float, device: Device, tp: int) -> float:
    """Seconds of ``rows`` through matrices of ``params``: as long as reading them, or as computing, if that is more."""
    return max(params * width / device.weight_bytes_s, 2 * rows * params / device.flops_s) / tp


def _all_reduce_s(nbytes: float, tp: int, profile: HardwareProfile) -> float:
    """Seconds of one all-reduce in a ring: each device sends 2 (tp - 1) / tp of the bytes."""
    link = profile.peers or profile.intra
    return 2 * link.message_s + link.latency_s + 2 * (tp - 1) / tp * nbytes * link.byte_s


def _shared_out(seconds: float, instances: int, device: Device) -> float:
    """Seconds where ``instances`` share the device's cores, if they do."""
    return seconds * max(1.0, instances / device.shared_cores) if device.shared_cores else seconds
