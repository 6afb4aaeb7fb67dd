"""A measured profile before the fit: what the machine is, and how fast replicas were loaded."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from janus.core.exchange_cost import LinkCost
from janus.core.planning.hardware import Device, Figure, HardwareProfile
from janus.errors import JanusError
from janus.profiling.host_work import HostWork, fit_host
from janus.profiling.least_squares import quantile
from janus.profiling.machine import Conditions

#: Instances of one machine are on one node, however many there are: as many as ``janus up`` starts.
_ON_ONE_NODE = 1024


def template(
    conditions: Conditions,
    rates: Sequence[float],
    circumstances: Mapping[str, str],
    *,
    host_work: Sequence[HostWork] = (),
) -> HardwareProfile:
    """Return a profile in which the fitted figures are still missing.

    A device is what an instance has: all cores, which the instances of a role share, or as many as it has threads.

    Args:
        conditions: what was measured on.
        rates: bytes per second that expert instances loaded at.
        circumstances: what the profile says of how it was measured.
        host_work: what gateway and clients took; without, the profile says nothing of them.
    """
    name = f"cpu-{conditions.threads}" if conditions.threads else "cpu"
    parts = 2 * conditions.instances
    memory = round(conditions.memory_bytes / parts)
    share = f"{conditions.memory_bytes / 2**30:.1f} GiB of the machine, by {parts}: the other role has as much"
    load = _mean(rates)
    host, of_host = fit_host(conditions.cores, host_work, cache_bytes=conditions.cache_bytes)
    device = Device(
        name=name,
        memory_bytes=memory,
        weight_bytes_s=1.0,
        kv_bytes_s=1.0,
        flops_s=1.0,
        load_bytes_s=load.value,
        shared_cores=conditions.instances,
    )
    link = LinkCost(message_s=0.0, latency_s=0.0, byte_s=0.0)
    threads = f"Instances of --threads {conditions.threads}" if conditions.threads else "Instances that share the cores"
    return HardwareProfile(
        name=f"measured-{conditions.slug}",
        kind="measured",
        about=f"{threads} on {conditions.hardware}, in {conditions.dtype}. The gateway and its clients were there too.",
        devices={name: device},
        intra=link,
        inter=link,
        devices_per_node=_ON_ONE_NODE,
        host=host,
        figures={
            f"{name}.memory_bytes": Figure(value=memory, source=share),
            f"{name}.load_bytes_s": load,
            f"{name}.cost_per_hour": Figure(value=1.0, source="a unit"),
            **of_host,
        },
        measured=circumstances,
    )


def _mean(rates: Sequence[float]) -> Figure:
    """Mean and 95 % interval of what expert instances saw when they loaded."""
    if not rates:
        raise JanusError("no expert instance says how fast it loaded its replicas")
    source = f"{len(rates)} expert instances, each as it started, from files in the page cache"
    value = round(statistics.fmean(rates))
    if len(rates) < 3:
        return Figure(value=value, source=source)
    half = quantile(len(rates) - 1) * statistics.stdev(rates) / len(rates) ** 0.5
    return Figure(value=value, low=round(max(0.0, value - half)), high=round(value + half), source=source)
