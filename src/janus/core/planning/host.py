"""One machine whose cores everything shares: instances, gateway, perhaps clients. A laptop is one, GPU nodes are not.

Three things follow, and none is there where every instance has a device of its own.

threads     Instances of a role have a share of the cores each (``janus up``), whether the others compute or not. Where
            they are more than the cores, the expert instances of a layer take turns: three on two cores take as long as
            four would, since the third begins when another one is through.
waiting     Attention instances that are answered together cannot go on together: one is served before the other, and
            keeps that lead. So their steps do not meet at the experts, each has them read the weights for itself, and
            all steps, and what gateway and clients do with every token, wait for the same cores. A step alone takes T
            seconds, D of them of the whole host (core-seconds over cores); the others want W such seconds meanwhile.
            Taking turns in small slices, a step stays R on the cores with

                R = D + W R / (R + T - D),

            since it meets the others' work while it is there itself (mean value analysis of a closed network with one
            processor-sharing station: Reiser and Lavenberg, J. ACM 27, 1980; Schweitzer's approximation). It then takes
            R + T - D: T where nobody else is there, and never less than all that is wanted of the host.
cache       Weights of experts stream through the cache that all cores share, and take with them what everything between
            two products needs: code, frames, the heap. With a layer's weights of the cache's size or more, all of that
            has to be fetched anew, layer by layer.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from janus.core.planning.elementwise import larger, smaller
from janus.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """A machine that everything runs on, and the seconds of one core that serving takes beside the instances."""

    #: Cores; 0 = instances do not share a machine, and the rest says nothing.
    cores: int = 0
    #: Of the gateway: per request, per message of an attention instance (one for each step), and per output token.
    gateway_request_s: float = 0.0
    gateway_message_s: float = 0.0
    gateway_token_s: float = 0.0
    #: Of the clients, where they are on the same machine, as a load generator is.
    client_request_s: float = 0.0
    client_token_s: float = 0.0
    #: Bytes of the cache that all cores share, and the seconds of one core by which a MoE layer takes longer when its
    #: experts' weights have taken all of it.
    cache_bytes: float = 0.0
    cold_layer_s: float = 0.0

    def __post_init__(self) -> None:
        for each in fields(self):
            if not getattr(self, each.name) >= 0:
                raise ConfigError(f"host.{each.name}", f"is {getattr(self, each.name)}", "give 0 or more")
            if not self.cores and getattr(self, each.name):
                raise ConfigError("host.cores", "is missing", f"give the cores that {each.name} is taken from")

    def message_s(self, tokens: Any) -> Any:
        """Return core-seconds of gateway and clients for one step's message of ``tokens`` tokens."""
        return self.gateway_message_s + tokens * (self.gateway_token_s + self.client_token_s)

    @property
    def request_s(self) -> float:
        """Core-seconds of gateway and clients for one request, beside its tokens."""
        return self.gateway_request_s + self.client_request_s

    def cold_s(self, weights: Any) -> Any:
        """Return the seconds by which a layer takes longer that reads ``weights`` bytes, for what they push out."""
        if not self.cache_bytes or not self.cold_layer_s:
            return 0.0
        return self.cold_layer_s * smaller(1.0, weights / self.cache_bytes)

    def thinner(self, instances: Any, devices: int) -> Any:
        """Return how much longer products take one of ``instances`` of a role, as it has fewer threads than a device.

        ``devices``: those that the host has; an instance has one's cores, or its share where they are too few.
        """
        return self.cores / devices / self._threads(instances, devices)

    def turns(self, instances: Any, devices: int) -> Any:
        """Return in how many turns ``instances`` of a role compute what they have begun together."""
        return larger(1.0, -(-instances * self._threads(instances, devices) // self.cores))

    def _threads(self, instances: Any, devices: int) -> Any:
        return larger(1.0, smaller(self.cores / devices, self.cores // instances))


def shared_s(alone: Any, *, cores: Any, beside: Any, others: Any) -> Any:
    """Return the seconds of a step on a host that is not there for it alone; elementwise.

    Args:
        alone: T, what it takes without anybody else.
        cores: D, of these, as seconds of the whole host; at most T.
        beside: seconds of the whole host that gateway and clients want for it, while the next step goes on.
        others: W, what others want of the host in such a time, theirs for gateway and clients included.
    """
    waits, wanted = alone - cores, cores + beside
    less = wanted + others - waits
    return waits + (less + (less * less + 4 * wanted * waits) ** 0.5) / 2
