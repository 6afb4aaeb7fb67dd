"""What the survivors must load at once when expert instances are gone: the experts that are nowhere, and no more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from janus.core.placement import EMPTY, Placement
from janus.core.placing.contract import Held, Host
from janus.errors import ConfigError


def repair(placement: Placement, hosts: Sequence[Host]) -> Held:
    """Return what each of ``hosts`` should hold: what it holds in ``placement``, and its part of the lost experts.

    A lost expert goes to the host with the most free slots for its speed; where none is free, it takes the place of a
    replica of the expert that has the most, on a host that has it. Deterministic.

    Args:
        placement: what was in force; instances that are not among ``hosts`` by name are gone.
        hosts: the survivors. One that ``placement`` does not know holds nothing yet.

    Raises:
        ConfigError: the survivors have fewer slots than there are experts.
    """
    experts = placement.num_experts
    room = sum(min(host.capacity, experts) for host in hosts)
    if room < experts:
        raise ConfigError(
            "slots",
            f"{len(hosts)} expert instances with {room} slots per layer are left, the model has {experts} experts",
            "start another expert instance, or give each more slots",
        )
    index = {name: i for i, name in enumerate(placement.instances)}
    layers = []
    for slots in placement.slots:
        held = [
            [expert for expert in slots[index[host.name]] if expert != EMPTY] if host.name in index else []
            for host in hosts
        ]
        _repair_layer(held, hosts, experts)
        layers.append(tuple(tuple(sorted(each)) for each in held))
    return tuple(layers)


def _repair_layer(held: list[list[int]], hosts: Sequence[Host], experts: int) -> None:
    copies = Counter(expert for each in held for expert in each)
    for expert in range(experts):
        if copies[expert]:
            continue
        free = [g for g, host in enumerate(hosts) if len(held[g]) < host.capacity]
        if free:
            # Memory-bound experts: the time of a host grows with what it holds, less so for a fast one.
            g = min(free, key=lambda g: (len(held[g]) / hosts[g].speed, g))
        else:
            g, spare = _most_copied(held, copies)
            held[g].remove(spare)
            copies[spare] -= 1
        held[g].append(expert)
        copies[expert] += 1


def _most_copied(held: list[list[int]], copies: Counter[int]) -> tuple[int, int]:
    """Return (host, expert) of a replica that can be done without; there is one, as there are slots for all experts."""
    return max(
        ((g, expert) for g, each in enumerate(held) for expert in each if copies[expert] > 1),
        key=lambda pair: (copies[pair[1]], len(held[pair[0]]), -pair[1]),
    )
