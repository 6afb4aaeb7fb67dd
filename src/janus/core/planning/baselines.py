"""The systems that Janus is compared with, modelled as the paper does (arXiv 2512.13525, section 5): same devices,
same ``step_time``, other decisions.

monolithic      SGLang: every device has both roles, attention data-parallel (tensor-parallel within a group where its
                weights do not fit otherwise), experts spread over all devices, tokens balanced over replicas; whole
                models of 8, 16, 32 or 64 devices.
megascale       MegaScale-Infer: separate pools, replicas chosen at random, gate at the attention side, a message per
                pair of instances; as many attention instances as make attention and experts take equally long.
xdeepserve      xDeepServe: separate pools, tokens balanced over replicas as EPLB does, a message per pair; devices
                come in steps of 4 in each pool.

``placement`` and ``scheduler`` name the policies of ``janus.core.placing`` and ``janus.core.scheduling`` that an a_max
table of the system is made with. A system answers with ``Offer``s: what it could run a load on, and the step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from janus.config.options import PlacementName, SchedulerName
from janus.core.exchange_routes import MODES, Mode
from janus.core.planning.hardware import Device, HardwareProfile
from janus.core.planning.memory import USABLE_MEMORY
from janus.core.planning.performance import AMax, Deployment, Load, StepTime, step_time
from janus.core.planning.sizes import ModelSizes
from janus.errors import ConfigError

#: Devices of whole models.
MONOLITHIC_SIZES = (8, 16, 32, 64)
#: Tensor-parallel widths that a monolithic system may choose for its attention.
_WIDTHS = (1, 2, 4, 8)
XDEEPSERVE_STEP = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What every system is asked about."""

    model: ModelSizes
    profile: HardwareProfile
    device: Device
    #: The system's own: made with its ``placement`` and ``scheduler``.
    a_max: AMax
    #: Experts per layer that an instance of a separate pool holds, C.
    slots: int

    def __post_init__(self) -> None:
        if self.slots < 1:
            raise ConfigError("slots", f"is {self.slots}", "give at least 1")

    @property
    def least_experts(self) -> int:
        """Expert instances that hold every expert once."""
        return -(-self.model.experts // self.slots)


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """One way to run a load."""

    system: str
    deployment: Deployment
    step: StepTime
    #: Devices, of which a colocated one counts once.
    devices: int
    #: Why it does not run; empty when it does.
    misfit: str = ""

    def tokens_per_device_s(self, load: Load) -> float:
        """TPG: output tokens per second and device."""
        return load.batch / self.step.total_s / self.devices


Offers: TypeAlias = Callable[[Setting, Load, int], Iterator[Offer]]


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """One of the systems."""

    name: str
    placement: PlacementName
    scheduler: SchedulerName
    #: Ways to exchange that it has.
    modes: tuple[Mode, ...]
    #: ``(setting, load, most devices)`` -> everything that it could run the load on, fewest devices first.
    offers: Offers

    def best(self, setting: Setting, load: Load, *, tpot_s: float, most: int = 128) -> Offer | None:
        """Return the offer with the fewest devices that keeps ``tpot_s``, the quickest of those; ``None``: there is
        none up to ``most`` devices.
        """
        kept = [o for o in self.offers(setting, load, most) if not o.misfit and o.step.total_s <= tpot_s]
        return min(kept, key=lambda offer: (offer.devices, offer.step.total_s), default=None)


# -- separate pools ------------------------------------------------------------------------------------------------


def separate(
    system: str, setting: Setting, load: Load, *, attention: int, experts: int, modes: Sequence[Mode] = MODES
) -> Offer:
    """Return what ``attention`` and ``experts`` instances make of ``load``."""
    deployment = Deployment(
        attention=attention, experts=experts, attention_device=setting.device, expert_device=setting.device
    )
    step = step_time(setting.model, setting.profile, deployment, load, a_max=setting.a_max, modes=modes)
    misfit = _attention_misfit(setting, deployment, load, experts_bytes=0.0)
    if experts < setting.least_experts:
        misfit = f"{experts} instances of {setting.slots} slots do not hold {setting.model.experts} experts"
    return Offer(system=system, deployment=deployment, step=step, devices=deployment.devices, misfit=misfit)


def _megascale(setting: Setting, load: Load, most: int) -> Iterator[Offer]:
    """For each number of expert instances, the fewest attention instances whose part takes no longer than theirs."""
    for experts in range(setting.least_experts, most):
        balanced = balanced_attention(setting, load, experts=experts, most=most - experts)
        if balanced is not None:
            yield balanced


def balanced_attention(setting: Setting, load: Load, *, experts: int, most: int) -> Offer | None:
    """Return MegaScale-Infer's choice for ``experts`` instances; ``None``: more than ``most`` would be needed.

    Where even one stream per instance leaves attention the longer part, as many as there are streams.
    """
    streams = max(1, round(load.batch))
    for attention in range(1, min(most, streams) + 1):
        offer = separate("megascale", setting, load, attention=attention, experts=experts, modes=("direct",))
        if offer.misfit:
            continue
        # Attention's devices also do the dense layers and choose the tokens.
        if offer.step.attention_s + offer.step.other_s <= offer.step.experts_s or attention == streams:
            return offer
    return None


def _xdeepserve(setting: Setting, load: Load, most: int) -> Iterator[Offer]:
    step = XDEEPSERVE_STEP
    least = -(-setting.least_experts // step) * step
    for devices in range(least + step, most + 1, step):
        for experts in range(least, devices, step):
            yield separate("xdeepserve", setting, load, attention=devices - experts, experts=experts, modes=("direct",))


# -- whole models --------------------------------------------------------------------------------------------------


def _monolithic(setting: Setting, load: Load, most: int) -> Iterator[Offer]:
    for devices in MONOLITHIC_SIZES:
        if devices <= most:
            yield whole_model(setting, load, devices=devices)


def whole_model(setting: Setting, load: Load, *, devices: int, widths: Sequence[int] = _WIDTHS) -> Offer:
    """Return what a monolithic system of ``devices`` makes of ``load``, at its quickest attention that fits memory.

    ``widths``: tensor-parallel ones that it may choose from.
    """
    offers = [_whole_model(setting, load, devices, width) for width in widths if devices % width == 0]
    return min(offers, key=lambda offer: (bool(offer.misfit), offer.step.total_s))


def _whole_model(setting: Setting, load: Load, devices: int, width: int) -> Offer:
    model = setting.model
    deployment = Deployment(
        attention=devices // width,
        experts=devices,
        attention_device=setting.device,
        expert_device=setting.device,
        tensor_parallel=width,
        colocated=True,
    )
    step = step_time(model, setting.profile, deployment, load, a_max=setting.a_max)
    held = -(-model.experts // devices) * model.moe_layers * model.expert_bytes
    misfit = _attention_misfit(setting, deployment, load, experts_bytes=held)
    return Offer(system="monolithic", deployment=deployment, step=step, devices=devices, misfit=misfit)


def _attention_misfit(setting: Setting, deployment: Deployment, load: Load, *, experts_bytes: float) -> str:
    """Say why weights and KV cache do not fit a device of the attention role; empty when they do."""
    model, device = setting.model, deployment.attention_device
    kv = load.batch / deployment.attention * load.context * model.kv_bytes_per_token
    needed = (model.attention_side_bytes + kv) / deployment.tensor_parallel + experts_bytes
    usable = USABLE_MEMORY * device.memory_bytes
    return "" if needed <= usable else f"needs {needed / 1e9:.1f} GB per device, {usable / 1e9:.1f} GB are usable"


MONOLITHIC = System(name="monolithic", placement="eplb", scheduler="token-balanced", modes=MODES, offers=_monolithic)
MEGASCALE = System(name="megascale", placement="eplb", scheduler="random", modes=("direct",), offers=_megascale)
XDEEPSERVE = System(
    name="xdeepserve", placement="eplb", scheduler="token-balanced", modes=("direct",), offers=_xdeepserve
)
BASELINES: dict[str, System] = {system.name: system for system in (MONOLITHIC, MEGASCALE, XDEEPSERVE)}
