"""Whether a better placement is worth the bytes that must be loaded for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from janus.core.placement import Placement
from janus.core.placing.contract import Activity, Held, PlacingRequest
from janus.core.placing.objective import estimate_a_max

#: Batches that both placements are compared on; from another seed than the policies search with, so that no placement
#: is judged by the batches that it was fitted to.
_SAMPLES, _SEED = 128, 7_001
#: Seconds for which a gain is expected to last: the load that it was computed for is a window of minutes.
HORIZON_S = 600.0
#: Share of its time that a host loses while it loads, for both want its memory or network.
LOADING_COSTS = 0.1
#: A smaller gain than this is not worth a change: about three standard errors of the estimate.
LEAST_GAIN = 0.03
#: Bytes of weights, as they are held in memory, that a host loads per second where no limit is set.
LOAD_RATE = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether to go from the placement in force to a target."""

    move: bool
    #: Mean a_max over the layers and sampled batches, for the hosts' speeds; 0 = it was not estimated.
    a_max_before: float
    a_max_after: float
    #: Replicas to load on each host, by name; hosts with none are left out.
    loads: dict[str, int]
    #: Of all replicas to load, in the memory that they are loaded into.
    bytes: int
    #: One line for the log.
    reason: str


def replicas_to_load(current: Placement | None, target: Held, hosts: Sequence[str]) -> dict[str, int]:
    """Return how many replicas each host must load for ``target``, over all layers; those with none are left out."""
    had = {name: ((),) * len(target) if current is None else current.replicas(name) for name in hosts}
    loads = {
        name: sum(len(set(layer[position]) - set(had[name][number])) for number, layer in enumerate(target))
        for position, name in enumerate(hosts)
    }
    return {name: count for name, count in loads.items() if count}


def worth_moving(
    request: PlacingRequest,
    target: Held,
    activity: Activity | None,
    *,
    bytes_per_expert: int,
    batch: int = 64,
    load_rate: float = LOAD_RATE,
    horizon_s: float = HORIZON_S,
    least_gain: float = LEAST_GAIN,
) -> Verdict:
    """Return whether ``target``, the answer to ``request``, is worth its loads.

    Where the hosts are not those of ``request.current`` there is no choice: move. Otherwise, with the gain
    ``1 - a_max_after / a_max_before`` and ``t`` = the seconds for which the host with most to load is loading, move if

    - the gain is at least ``least_gain``, so that noise in the statistics does not move replicas to and fro, and
    - ``gain * (horizon_s - t) > LOADING_COSTS * t``: layers are faster by the gain for what is left of the horizon,
      which must outweigh that hosts are slower while they load.

    Everything is relative to the time of a layer, so no time need be known.

    Args:
        activity: that the gain is estimated on.
        bytes_per_expert: weights of one replica in one layer, as they are held in memory.
        batch: tokens of a decode step of the cluster.
        load_rate: bytes per second at which each host may load; all load at the same time.
    """
    hosts, current = request.hosts, request.current
    names = [host.name for host in hosts]
    loads = replicas_to_load(current, target, names)
    total = sum(loads.values()) * bytes_per_expert

    def verdict(move: bool, reason: str, before: float = 0.0, after: float = 0.0) -> Verdict:
        return Verdict(move=move, a_max_before=before, a_max_after=after, loads=loads, bytes=total, reason=reason)

    if current is None or set(current.instances) != set(names):
        return verdict(True, "the expert instances are not those of the placement in force")
    now = tuple(zip(*(current.replicas(name) for name in names), strict=True))
    if now == target:
        return verdict(False, "the placement in force is the target")
    if activity is None or activity.trace is None or not activity.trace.shape[1]:
        return verdict(False, "there are no statistics to expect a gain from")
    before, after = (
        float(
            estimate_a_max(
                each,
                activity.trace,
                batch=batch,
                samples=_SAMPLES,
                seed=_SEED,
                speeds=[host.speed for host in hosts],
            ).mean()
        )
        for each in (now, target)
    )
    gain, loading_s = 1 - after / before, max(loads.values(), default=0) * bytes_per_expert / load_rate
    words = f"a_max {before:.2f} -> {after:.2f} ({gain:.1%} less), {total / 1e6:.1f} MB to load in {loading_s:.1f} s"
    if gain < least_gain:
        return verdict(False, f"{words}: less than the least gain, {least_gain:.0%}", before, after)
    if gain * (horizon_s - loading_s) <= LOADING_COSTS * loading_s:
        return verdict(False, f"{words}: loading costs more than {horizon_s:.0f} s of the gain", before, after)
    return verdict(True, words, before, after)
