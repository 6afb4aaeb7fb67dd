"""What each part of a layer takes on one instance of a deployment: the terms of ``performance.py``, elementwise too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from janus.core.exchange_cost import DispatchShape, predict
from janus.core.exchange_routes import MODES, Mode
from janus.core.planning.deployment import Deployment, Load
from janus.core.planning.elementwise import larger, smaller
from janus.core.planning.hardware import Device, HardwareProfile
from janus.core.planning.host import Host
from janus.core.planning.sizes import ModelSizes


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
    besides = device.attention_layer_s + rows * device.attention_row_s
    attention = _products_s(model.attention_params, model.weight_width, rows, device, tp)
    attention += _overlapped(read, seen * model.context_flops / device.flops_s / tp, device)
    if tp > 1:
        # One after attention, one after the dense MLP or the shared experts.
        besides += 2 * _all_reduce_s(rows * model.row_bytes, tp, profile)
    shared = _products_s(model.shared_params, model.weight_width, rows, device, tp)
    one_core, products = _shares(deployment.attention, device, profile.host)
    return besides * one_core + attention * products, shared * products


def expert_layer_s(
    model: ModelSizes, profile: HardwareProfile, deployment: Deployment, load: Load, a_max: float
) -> float:
    """Return the seconds of one layer's experts on the instance that activates the most of them."""
    device = deployment.expert_device
    choices = load.rows * model.top_k / deployment.experts
    weights = a_max * model.expert_bytes / device.weight_bytes_s
    products = choices * 2 * model.expert_params / device.flops_s
    one_core, all_cores = _shares(deployment.experts, device, profile.host)
    besides = (device.expert_layer_s + choices * device.row_s) * one_core
    seconds: float = besides + _overlapped(weights, products, device) * all_cores
    if profile.host.cores:
        seconds = seconds * profile.host.turns(deployment.experts, device.shared_cores)
    return seconds


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


def other_s(model: ModelSizes, profile: HardwareProfile, deployment: Deployment, load: Load) -> float:
    """Return the seconds of a step outside attention and routed experts."""
    device, tp = deployment.attention_device, deployment.tensor_parallel
    rows, streams = load.rows / deployment.attention, load.batch / deployment.attention
    dense = (model.layers - model.moe_layers) * _products_s(model.dense_params, model.weight_width, rows, device, tp)
    head = _products_s(model.head_params, model.weight_width, streams, device, tp)
    one_core, products = _shares(deployment.attention, device, profile.host)
    return (device.step_s + rows * device.token_s) * one_core + (dense + head) * products


def _products_s(params: float, width: float, rows: float, device: Device, tp: int) -> float:
    """Seconds of ``rows`` through matrices of ``params``: as long as reading them, or as computing, if that is more."""
    reading, computing = params * width / device.weight_bytes_s, 2 * rows * params / device.flops_s
    return _overlapped(reading, computing, device) / tp


def _overlapped(reading: float, computing: float, device: Device) -> float:
    """Seconds of both together: the longer, and what it does not hide of the shorter."""
    seconds: float = larger(reading, computing)
    return seconds + device.exposed * smaller(reading, computing) if device.exposed else seconds


def _all_reduce_s(nbytes: float, tp: int, profile: HardwareProfile) -> float:
    """Seconds of one all-reduce: each device sends 2 (tp - 1) / tp of the bytes, as in a ring."""
    link = profile.peers or profile.intra
    return 2 * link.message_s + link.latency_s + 2 * (tp - 1) / tp * nbytes * link.byte_s


def _shares(instances: int, device: Device, host: Host) -> tuple[float, float]:
    """How much longer what one core does takes, and what all cores of a device do, where ``instances`` share them."""
    if not device.shared_cores:
        return 1.0, 1.0
    if host.cores:
        return 1.0, host.thinner(instances, device.shared_cores)
    # How much of it is one core's is not known.
    share: float = larger(1.0, instances / device.shared_cores)
    return share, share
