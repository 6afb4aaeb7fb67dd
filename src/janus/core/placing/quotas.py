"""How many slots of each host are used per layer."""

from __future__ import annotations

import math

import numpy as np

from janus.core.placing.contract import PlacingRequest
from janus.errors import ConfigError

#: Shares that differ by less than this are the same share.
_SAME = 1e-9


def quotas(request: PlacingRequest) -> tuple[int, ...]:
    """Return how many replicas each of ``request.hosts`` is to hold per layer: E or more together, each what it can.

    Host h with u slots has the level u / speed(h). From ``fill`` on (0 without it) all hosts rise to the lowest common
    level at which every expert has a slot, each as far as its capacity allows; hosts at the same level get the same, so
    equal hosts get ``ceil(E / G)``.

    Raises:
        ConfigError: the hosts together hold fewer replicas than there are experts, or a speed is no positive number.
    """
    hosts, experts = request.hosts, request.num_experts
    if not hosts:
        raise ConfigError("experts", "there is no expert instance to place experts on", "start at least one")
    for host in hosts:
        if not (math.isfinite(host.speed) and host.speed > 0):
            raise ConfigError("speed", f"{host.name} has the speed {host.speed}", "give a number above 0, 1 = ordinary")
    most = [min(max(host.capacity, 0), experts) for host in hosts]
    if sum(most) < experts:
        raise _too_few(request, sum(most))
    used = [min(request.fill, limit) for limit in most]
    missing = experts - sum(used)
    if missing <= 0:
        return tuple(used)
    levels = [np.arange(u + 1, limit + 1) / host.speed for host, u, limit in zip(hosts, used, most, strict=True)]
    level = np.partition(np.concatenate(levels), missing - 1)[missing - 1] * (1 + _SAME)
    return tuple(u + int(np.count_nonzero(above <= level)) for u, above in zip(used, levels, strict=True))


def _too_few(request: PlacingRequest, held: int) -> ConfigError:
    capacities = sorted({host.capacity for host in request.hosts})
    slots = str(capacities[0]) if len(capacities) == 1 else f"{capacities[0]} to {capacities[-1]}"
    each = -(-request.num_experts // len(request.hosts))
    instances = -(-request.num_experts // max(capacities[-1], 1))
    return ConfigError(
        "slots",
        f"{len(request.hosts)} expert instances with {slots} slots per layer hold {held} experts, "
        f"the model has {request.num_experts}",
        f"give each at least {each} slots, or start at least {instances} instances",
    )
