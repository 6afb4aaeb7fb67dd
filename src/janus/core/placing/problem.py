"""One layer of a placing request, as arrays. G hosts, E experts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from janus.core.placement import EMPTY
from janus.core.placing.contract import Activity, Held, PlacingRequest
from janus.core.placing.dealing import at_least_a_little
from janus.core.placing.quotas import quotas
from janus.errors import ConfigError

#: bool[G, E]: whether a host holds an expert.
Holding = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerProblem:
    """What is to be decided for one layer: which experts each host holds, exactly its quota of them."""

    layer: int
    #: How many there are.
    num_layers: int
    #: int64[G], together at least E.
    quotas: npt.NDArray[np.int64]
    #: float64[G].
    speeds: npt.NDArray[np.float64]
    #: int64[G]: hosts with equal numbers are on one node.
    nodes: npt.NDArray[np.int64]
    #: float64[E], above 0: activations, all alike where there are no statistics.
    loads: npt.NDArray[np.float64]
    #: float64[E, E]: how often two experts were chosen together; zeros without statistics.
    coactivation: npt.NDArray[np.float64]
    #: int[S, K], S > 0: experts of sampled tokens; ``None`` without.
    trace: npt.NDArray[np.uint16] | None
    #: What the placement in force has on these hosts.
    held: Holding
    #: Replicas that every expert should have: as many as were asked for, where they fit.
    least: int
    #: Whether ``held`` is itself an answer: the same hosts, every quota filled, every expert there.
    in_place: bool


def problems(request: PlacingRequest) -> Iterator[LayerProblem]:
    """Yield the problem of each layer.

    Raises:
        ConfigError: too few slots, as ``quotas`` says; or statistics of another shape than the model's.
    """
    wanted = np.array(quotas(request), dtype=np.int64)
    names = {node: number for number, node in enumerate(dict.fromkeys(host.node for host in request.hosts))}
    nodes = np.array([names[host.node] for host in request.hosts], dtype=np.int64)
    _check(request)
    held = _held(request)
    same_hosts = request.current is not None and (
        {host.name for host in request.hosts} == set(request.current.instances)
    )
    activity, experts = request.activity, request.num_experts
    for layer in range(request.num_layers):
        loads, coactivation, trace = (
            _statistics(activity, layer) if activity is not None else (np.ones(experts), np.zeros((experts,) * 2), None)
        )
        least = max(1, min(request.least_replicas, int(wanted.sum()) // experts, len(wanted)))
        filled = bool((held[layer].sum(axis=1) == wanted).all() and (held[layer].sum(axis=0) >= least).all())
        yield LayerProblem(
            layer=layer,
            num_layers=request.num_layers,
            quotas=wanted,
            speeds=np.array([host.speed for host in request.hosts], dtype=np.float64),
            nodes=nodes,
            loads=loads,
            coactivation=coactivation,
            trace=trace,
            held=held[layer],
            least=least,
            in_place=same_hosts and filled,
        )


def as_held(layers: list[Holding]) -> Held:
    """Return the wire-independent form of one holding per layer."""
    return tuple(tuple(tuple(np.flatnonzero(host).tolist()) for host in layer) for layer in layers)


def as_holding(layer: tuple[tuple[int, ...], ...], num_experts: int) -> Holding:
    """Return one layer of a ``Held`` as an array."""
    holding = np.zeros((len(layer), num_experts), dtype=bool)
    for host, experts in enumerate(layer):
        holding[host, list(experts)] = True
    return holding


def _statistics(
    activity: Activity, layer: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.uint16] | None]:
    counts = activity.counts[layer]
    loads = at_least_a_little(counts)
    if activity.coactivation is not None:
        together = activity.coactivation[layer].astype(np.float64)
    else:  # as if tokens chose their experts independently of each other
        together = np.outer(counts, counts) / max(float(counts.sum()), 1.0)
        np.fill_diagonal(together, 0.0)
    trace = activity.trace[layer] if activity.trace is not None and activity.trace.shape[1] else None
    return loads, together, trace


def _held(request: PlacingRequest) -> Holding:
    held = np.zeros((request.num_layers, len(request.hosts), request.num_experts), dtype=bool)
    current = request.current
    if current is None:
        return held
    table = current.phys_to_logical.reshape(current.num_layers, current.num_instances, -1)
    for position, host in enumerate(request.hosts):
        if host.name in current.instances:
            layers, slots = np.nonzero(table[:, current.instances.index(host.name)] != EMPTY)
            held[layers, position, table[layers, current.instances.index(host.name), slots]] = True
    return held


def _check(request: PlacingRequest) -> None:
    layers, experts, activity = request.num_layers, request.num_experts, request.activity
    if activity is not None and (
        activity.counts.shape != (layers, experts)
        or not np.isfinite(activity.counts).all()
        or activity.counts.min() < 0
        or (activity.coactivation is not None and activity.coactivation.shape != (layers, experts, experts))
        or (activity.trace is not None and (activity.trace.ndim != 3 or len(activity.trace) != layers))
    ):
        raise ConfigError(
            "activations",
            f"has counts of the shape {activity.counts.shape}, or negative or non-finite ones, or a trace or "
            "co-activation of another model",
            f"give counts of the shape {(layers, experts)}",
        )
    current = request.current
    if current is not None and (current.num_layers, current.num_experts) != (layers, experts):
        raise ConfigError(
            "current",
            f"is a placement of {current.num_layers} layers with {current.num_experts} experts",
            f"give one of {layers} layers with {experts} experts",
        )
