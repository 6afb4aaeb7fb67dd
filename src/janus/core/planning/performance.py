"""How long a decode step takes: attention, exchange and experts, layer by layer.

Equation 1 of arXiv 2512.13525 (section 3.5), per layer: T_attn = max(c_a, alpha b + c_kv b S) with b = B / n_a tokens
per attention instance and S tokens of context each; T_moe = beta a_max(n_e, B) + c_e; T_comm. The coefficients come
from the rates of the device and the sizes of the model:

c_a     the weights of the layer, read once per step        attention_params * width / weight_bytes_s
alpha   the layer's products, per token                     2 * attention_params / flops_s
c_kv    the KV cache of one token of context                kv_elements * width / kv_bytes_s
beta    the weights of one expert                           expert_params * width / weight_bytes_s
gamma   the products of one row in one expert (not in the paper: prefill and large batches need it)

Weights and products overlap on a device, so the larger of the two counts; the KV cache is read besides, by a kernel of
its own. All instances of a role are alike, and what they wait for is the one that is asked to do most.

Every formula is elementwise: the counts of a ``Deployment`` and the numbers of a ``Load`` may be arrays that broadcast,
which is how the search prices a plane of deployments at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from janus.core.exchange_cost import DispatchShape, predict
from janus.core.exchange_routes import MODES, Mode
from janus.core.planning.elementwise import larger, smaller
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
    #: Tokens of its prompt that such a token looks back on, as a mean; ``None`` = ``context``.
    prefill_context: float | None = None

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
    experts_activated = a_max(deployment.experts, larger(1.0, together.rows))
    attention, shared = attention_layer_s(model, profile, deployment, part)
    experts = expert_layer_s(model, deployment, together, experts_activated)
    mode, exchange = exchange_layer_s(model, profile, deployment, part, modes)
    moe, layers = model.moe_layers, model.layers
    layer = moe_layer_s(deployment, attention, shared, exchange, experts)
    return StepTime(
        attention_s=parts * (layers * attention + moe * shared),
        exchange_s=parts * moe * exchange,
        experts_s=parts * moe * experts,
        other_s=parts * other_s(model, deployment, part),
        hidden_s=moe * (parts * (attention + shared + exchange + experts) - layer),
        a_max=experts_activated,
        exchange=mode,
    )


def moe_layer_s(deployment: Deployment, attention: float, shared: float, exchange: float, experts: float) -> float:
    """Return the seconds in which all micro-batches pass one MoE layer, given what each part of one of them takes.

    One of them passes its parts one after the other, but for the shared experts, which run while activations travel
    and, unless on the same devices, the routed ones compute. With several, a layer comes round no sooner than that, and
    no sooner than the busiest pool has served all of them.
    """
    parts = deployment.micro_batches
    if deployment.colocated:
        # The same devices do everything but wait.
        together: float = larger(parts * (attention + shared + experts), attention + larger(shared, exchange) + experts)
        return together
    alone = attention + larger(shared, exchange + experts)
    busiest = parts * larger(attention + shared, experts)
    a, e = deployment.attention_device, deployment.expert_device
    if a.shared_cores and a.name == e.name:
        # Both pools are processes on the same cores: overlap wins nothing beyond cores that would idle.
        cores = a.shared_cores
        of_attention = (attention + shared) * smaller(1.0, deployment.attention / cores)
        work = of_attention + experts * smaller(1.0, deployment.experts / cores)
        busiest = larger(busiest, parts * work)
    longest: float = larger(alone, busiest)
    return longest


def attention_layer_s(
    model: ModelSizes, profile: HardwareProfile, deployment: Deployment, load: Load
) -> tuple[float, float]:
    """Return the seconds of one layer's attention, and of its shared experts and router."""
    device, tp = deployment.attention_device, deployment.tensor_parallel
    rows, streams = load.rows / deployment.attention, load.batch / deployment.attention
    context = streams * load.context
    looks_back = load.context if load.prefill_context is None else load.prefill_context
    seen = context + load.prefill / deployment.attention * looks_back
    read = context * model.kv_elements * model.kv_width / device.kv_bytes_s / model.kv_divided(tp)
    attention = device.attention_layer_s + _products_s(model.attention_params, model.weight_width, rows, device, tp)
    attention += larger(read, seen * model.context_flops / device.flops_s / tp)
    if tp > 1:
        # One after attention, one after the dense MLP or the shared experts.
        attention += 2 * _all_reduce_s(rows * model.row_bytes, tp, profile)
    shared = _products_s(model.shared_params, model.weight_width, rows, device, tp)
    return _shared_out(attention, deployment.attention, device), _shared_out(shared, deployment.attention, device)


def expert_layer_s(model: ModelSizes, deployment: Deployment, load: Load, a_max: float) -> float:
    """Return the seconds of one layer's experts on the instance that activates the most of them."""
    device = deployment.expert_device
    choices = load.rows * model.top_k / deployment.experts
    weights = a_max * model.expert_bytes / device.weight_bytes_s
    products = choices * 2 * model.expert_params / device.flops_s
    seconds = device.expert_layer_s + larger(weights, products) + choices * device.row_s
    return _shared_out(seconds, deployment.experts, device)


def exchange_layer_s(
    model: ModelSizes, profile: HardwareProfile, deployment: Deployment, load: Load, modes: Sequence[Mode] = MODES
) -> tuple[Mode, float]:
    """Return the quickest of ``modes`` for one layer's exchange, there and back, and its seconds."""
    shape = dispatch_shape(model, profile, deployment, load)
    near = deployment.devices <= profile.devices_per_node

    def seconds(mode: Mode, *, near: bool) -> float:
        inter, intra = profile.links(members=shape.members, near=near)
        return predict(mode, shape, inter=inter, intra=intra)

    if not isinstance(near, np.ndarray):
        times = {mode: seconds(mode, near=near) for mode in modes}
        best = min(times, key=lambda mode: times[mode])
        return best, times[best]
    every: Any = np.array([np.where(near, seconds(mode, near=True), seconds(mode, near=False)) for mode in modes])
    modes_at: Any = np.array(modes)[every.argmin(axis=0)]
    return modes_at, every.min(axis=0)


def dispatch_shape(model: ModelSizes, profile: HardwareProfile, deployment: Deployment, load: Load) -> DispatchShape:
    """Return what one attention instance sends in one layer, as a mean over tokens that choose evenly."""
    n, per_node = deployment.experts, profile.devices_per_node
    nodes = -(-n // per_node)
    rows = load.rows / deployment.attention
    row = model.row_bytes

    def nbytes(places: Any) -> Any:
        """Bytes to ``places`` that the k experts of a token are spread over."""
        return rows * row * places * (1 - (1 - 1 / places) ** model.top_k)

    batch: Any = rows * row
    return DispatchShape(
        instances=n,
        instance_bytes=nbytes(n),
        instance_answer_bytes=nbytes(n),
        nodes=nodes,
        node_bytes=nbytes(nodes),
        node_answer_bytes=nbytes(nodes),
        batch_bytes=batch,
        largest_node=smaller(n, per_node),
        members=smaller(deployment.attention, larger(1, per_node // deployment.tensor_parallel)),
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
    return load if parts == 1 else replace(load, batch=load.batch / parts, prefill=load.prefill / parts)


def _products_s(params: float, width: float, rows: float, device: Device, tp: int) -> float:
    """Seconds of ``rows`` through matrices of ``params``: as long as reading them, or as computing, if that is more."""
    seconds: float = larger(params * width / device.weight_bytes_s, 2 * rows * params / device.flops_s) / tp
    return seconds


def _all_reduce_s(nbytes: float, tp: int, profile: HardwareProfile) -> float:
    """Seconds of one all-reduce: each device sends 2 (tp - 1) / tp of the bytes, as in a ring."""
    link = profile.peers or profile.intra
    return 2 * link.message_s + link.latency_s + 2 * (tp - 1) / tp * nbytes * link.byte_s


def _shared_out(seconds: float, instances: int, device: Device) -> float:
    """Seconds where ``instances`` share the device's cores, if they do."""
    return seconds * larger(1.0, instances / device.shared_cores) if device.shared_cores else seconds
