"""What the hardware does: rates of devices and links, each measured or taken from a published figure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from janus.core.exchange_cost import LinkCost
from janus.core.planning.elementwise import smaller
from janus.core.planning.host import Host
from janus.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """Where one number comes from."""

    value: float
    #: Bounds of the 95 % confidence interval; ``None`` for a published figure.
    low: float | None = None
    high: float | None = None
    #: "measured", or the publication.
    source: str = "measured"


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """What one instance runs on. Rates are those that a step reaches, not peaks.

    The coefficients of the performance model (arXiv 2512.13525, section 3.5, equation 1) follow from these and from a
    model's sizes, so that one measurement serves every model: see ``performance.py``.
    """

    name: str
    memory_bytes: float
    #: Bytes of weights, and of the KV cache, that a step reads per second.
    weight_bytes_s: float
    kv_bytes_s: float
    #: Floating-point operations per second of a large product.
    flops_s: float
    #: Seconds that one layer takes besides: attention with the gate; experts; and one step takes besides its layers.
    attention_layer_s: float = 0.0
    expert_layer_s: float = 0.0
    step_s: float = 0.0
    #: Seconds besides its products that a token takes: in a step (sampling, bookkeeping), in a layer's attention
    #: (norms, rotary embedding, KV write, gate), and in a dispatch at its experts.
    token_s: float = 0.0
    attention_row_s: float = 0.0
    row_s: float = 0.0
    #: Of reading weights and computing with them, the share of the shorter that the longer does not hide: 0 where they
    #: overlap to the last byte, 1 where one is done after the other.
    exposed: float = 0.0
    #: Bytes of replicas loaded per second, from a peer or from disk, whichever is faster.
    load_bytes_s: float = 1e9
    cost_per_hour: float = 1.0
    #: Instances that share one such device's cores (a laptop's processes do); 0 = each has its own.
    shared_cores: int = 0

    def __post_init__(self) -> None:
        for name in ("memory_bytes", "weight_bytes_s", "kv_bytes_s", "flops_s", "load_bytes_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{self.name}.{name}", f"is {getattr(self, name)}", "give a positive number")
        seconds = ("attention_layer_s", "expert_layer_s", "step_s", "token_s", "attention_row_s", "row_s")
        for name in (*seconds, "exposed", "cost_per_hour"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{self.name}.{name}", f"is {getattr(self, name)}", "give 0 or more")
        if self.exposed > 1:
            raise ConfigError(f"{self.name}.exposed", f"is {self.exposed}", "give a share, 0 to 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class HardwareProfile:
    """Kinds of devices and the links between them."""

    name: str
    kind: Literal["measured", "published"]
    devices: Mapping[str, Device]
    #: Between instances of one node, and of different nodes.
    intra: LinkCost
    inter: LinkCost
    devices_per_node: int = 8
    #: Links that the members of a node have between them: 1 = they share one; as many as devices = each has its own.
    links_per_node: int = 1
    #: Between the devices of one tensor-parallel instance.
    peers: LinkCost | None = None
    #: The one machine that everything runs on, if it does.
    host: Host = field(default_factory=Host)
    #: ``{"<device>.<field>" | "intra.<field>" | ...: where it comes from}``.
    figures: Mapping[str, Figure] = field(default_factory=dict)
    about: str = ""
    #: Of a measured profile: command, hardware, commit, date, what was run.
    measured: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.devices:
            raise ConfigError(f"{self.name}.device", "there is none", "give at least one table [device.NAME]")
        for name in ("devices_per_node", "links_per_node"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{self.name}.{name}", f"is {getattr(self, name)}", "give at least 1")
        for device in self.devices.values():
            if self.host.cores and not 0 < device.shared_cores <= self.host.cores:
                raise ConfigError(
                    f"{self.name}.device.{device.name}.shared_cores",
                    f"is {device.shared_cores} on a host of {self.host.cores} cores",
                    "give how many such devices the host has, 1 up to its cores, or leave out [host]",
                )

    def links(self, *, members: int, near: bool) -> tuple[LinkCost, LinkCost]:
        """Return what messages cost to the experts, and within a node, when ``members`` of a node send together.

        Links are priced as if the node had one that its members share; where they have several, a byte costs less.
        ``near``: the experts are on the same node.
        """
        share = 1 / smaller(members, self.links_per_node)
        inter, intra = (replace(link, byte_s=link.byte_s * share) for link in (self.inter, self.intra))
        return (intra if near else inter), intra

    def device(self, name: str | None = None) -> Device:
        """Return the device of that name; without one, the only or first one.

        Raises:
            ConfigError: there is none of that name.
        """
        if name is None:
            return next(iter(self.devices.values()))
        if name not in self.devices:
            known = ", ".join(self.devices)
            raise ConfigError("device", f"profile {self.name} has no device {name!r}", f"it has: {known}")
        return self.devices[name]
