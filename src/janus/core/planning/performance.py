"""How long a decode step takes: attention, exchange and experts, layer by layer.

Equation 1 of arXiv 2512.13525 (section 3.5), per layer: T_attn = max(c_a, alpha b + c_kv b S) with b = B / n_a tokens
per attention instance and S tokens of context each; T_moe = beta a_max(n_e, B) + c_e; T_comm. The coefficients come
from the rates of the device and the sizes of the model:

c_a     the weights of the layer, read once per step        attention_params * width / weight_bytes_s
alpha   the layer's products, per token                     2 * attention_params / flops_s
c_kv    the KV cache of one token of context                kv_elements * width / kv_bytes_s
beta    the weights of one expert                           expert_params * width / weight_bytes_s
gamma   the products of one row in one expert (not in the paper: prefill and large batches need it)

Weights and products overlap on a device, so the larger of the two counts, and of the smaller what the device does not
hide (``Device.exposed``); the KV cache is read besides, by a kernel of its own. All instances of a role are alike, and
what they wait for is the one that is asked to do most.

Every formula is elementwise: the counts of a ``Deployment`` and the numbers of a ``Load`` may be arrays that broadcast,
which is how the search prices a plane of deployments at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from janus.core.exchange_routes import MODES, Mode
from janus.core.planning.deployment import Deployment, Load
from janus.core.planning.elementwise import larger, smaller
from janus.core.planning.hardware import HardwareProfile
from janus.core.planning.host import shared_s
from janus.core.planning.layer_times import attention_layer_s, exchange_layer_s, expert_layer_s, other_s
from janus.core.planning.sizes import ModelSizes

__all__ = ["AMax", "Deployment", "Load", "StepTime", "alone_on_host", "moe_layer_s", "step_time"]


class AMax(Protocol):
    """Mean a_max per MoE layer of ``batch`` tokens on ``experts`` instances; see ``activation.py``."""

    def __call__(self, experts: int, batch: float) -> float:
        """Return it; at most the slots of an instance, never falling as ``batch`` grows."""


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
    #: For cores that others on the same host use.
    waiting_s: float = 0.0
    #: Mean a_max that it reckons with, and the way of exchange.
    a_max: float = 0.0
    exchange: Mode = "direct"

    @property
    def total_s(self) -> float:
        """The step; for a stream that decodes, its TPOT."""
        return self.attention_s + self.exchange_s + self.experts_s + self.other_s - self.hidden_s + self.waiting_s


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
            then what there would be if all were like the one that is asked for. The same as ``load`` unless given. On
            one host, where each computes its own, it says what the others are like.
        modes: ways to exchange that the system has.
    """
    if not profile.host.cores or deployment.colocated:
        return _apart(model, profile, deployment, load, a_max=a_max, at_experts=at_experts or load, modes=modes)
    step, cores, beside = alone_on_host(model, profile, deployment, load, a_max=a_max, modes=modes)
    alone, each, instances, others = step.total_s, cores + beside, deployment.attention, load
    if at_experts is not None:
        # What the own one leaves of it is the others'; as ``load`` has it, if all were like one of these.
        share = instances / larger(1.0, instances - 1.0)
        others = replace(
            load,
            batch=larger(0.0, at_experts.batch - load.batch / instances) * share,
            prefill=larger(0.0, at_experts.prefill - load.prefill / instances) * share,
        )
        _, cores_of_one, beside_one = alone_on_host(model, profile, deployment, others, a_max=a_max, modes=modes)
        each = cores_of_one + beside_one
    # With less than a stream each, the others compute for that share of the time.
    busy = (instances - 1.0) * smaller(1.0, others.rows / instances)
    seconds = shared_s(alone, cores=cores, beside=beside, others=busy * each)
    return replace(step, waiting_s=seconds - alone)


def _apart(
    model: ModelSizes,
    profile: HardwareProfile,
    deployment: Deployment,
    load: Load,
    *,
    a_max: AMax,
    at_experts: Load,
    modes: Sequence[Mode],
) -> StepTime:
    """A step that waits for nobody's cores."""
    parts = deployment.micro_batches
    part, together = _part(load, parts), _part(at_experts, parts)
    experts_activated = a_max(deployment.experts, larger(1.0, together.rows))
    attention, shared = attention_layer_s(model, profile, deployment, part)
    experts = expert_layer_s(model, profile, deployment, together, experts_activated)
    mode, exchange = exchange_layer_s(model, profile, deployment, part, modes)
    # Where it is felt: between the products.
    exchange = exchange + profile.host.cold_s(deployment.experts * experts_activated * model.expert_bytes)
    moe, layers = model.moe_layers, model.layers
    layer = moe_layer_s(deployment, attention, shared, exchange, experts)
    return StepTime(
        attention_s=parts * (layers * attention + moe * shared),
        exchange_s=parts * moe * exchange,
        experts_s=parts * moe * experts,
        other_s=parts * other_s(model, profile, deployment, part),
        hidden_s=moe * (parts * (attention + shared + exchange + experts) - layer),
        a_max=experts_activated,
        exchange=mode,
    )


def alone_on_host(
    model: ModelSizes,
    profile: HardwareProfile,
    deployment: Deployment,
    load: Load,
    *,
    a_max: AMax,
    modes: Sequence[Mode] = MODES,
) -> tuple[StepTime, float, float]:
    """Return the step of one attention instance on a profile's host, as long as the others compute nothing.

    And, in seconds of the whole host, what it takes of the cores itself, and what gateway and clients do for its tokens
    meanwhile. ``load`` is that of ``step_time``.
    """
    host, n = profile.host, deployment.attention
    own = replace(load, batch=load.batch / n, prefill=load.prefill / n)
    step = _apart(model, profile, deployment, load, a_max=a_max, at_experts=own, modes=modes)
    besides, besides_experts = _on_one_core(model, deployment, own)
    experts, a, e = deployment.experts, deployment.attention_device, deployment.expert_device
    turns = host.turns(experts, e.shared_cores)
    # Products keep an instance's threads busy, the rest, and the exchange, one core.
    of_attention = (step.attention_s + step.other_s - besides) / host.thinner(n, a.shared_cores) / a.shared_cores
    of_experts = (step.experts_s / turns - besides_experts) / host.thinner(experts, e.shared_cores) / e.shared_cores
    one_core = besides + experts * besides_experts + step.exchange_s
    cores = of_attention + experts * of_experts + one_core / host.cores
    return step, smaller(cores, step.total_s), host.message_s(own.batch) / host.cores


def _on_one_core(model: ModelSizes, deployment: Deployment, own: Load) -> tuple[float, float]:
    """Seconds of a step of ``own`` that are one core's: the attention instance's, and each expert instance's."""
    parts, a, e = deployment.micro_batches, deployment.attention_device, deployment.expert_device
    per_token = model.layers * a.attention_row_s + a.token_s
    attention = parts * (model.layers * a.attention_layer_s + a.step_s) + own.rows * per_token
    choices = own.rows * model.top_k / deployment.experts
    return attention, model.moe_layers * (parts * e.expert_layer_s + choices * e.row_s)


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


def _part(load: Load, parts: int) -> Load:
    return load if parts == 1 else replace(load, batch=load.batch / parts, prefill=load.prefill / parts)
