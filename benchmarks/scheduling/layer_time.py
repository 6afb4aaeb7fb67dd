"""From how many tokens on it pays to balance tokens: a model of an MoE layer's time, not a measurement.

An expert's product reads its weights once and computes on every token routed to it, whichever takes longer; an instance
does its replicas one after the other; the layer takes as long as the slowest instance. In units of one expert's weight
read, with ``ridge`` the tokens whose arithmetic takes as long as that read::

    layer time = max over instances of  sum over activated replicas of  max(1, tokens / ridge)
"""

from __future__ import annotations

from typing import Any

import numpy as np
from benchmarks.scheduling.routing import Ids, Trace, seeded

from janus.core.placement import Placement
from janus.model.kernels.scheduling import fastest_scheduler

#: Tokens per expert at which arithmetic takes over. The paper (section 2) gives the batch at which DeepSeek-V3's MoE
#: layer (k = 8 of 256) becomes bound by arithmetic, about 18,000 tokens on an H100 and 5,000 on an A100; B * k / E.
RIDGES = {"H100": 18_000 * 8 / 256, "A100": 5_000 * 8 / 256}
POLICIES = ("token-balanced", "aebs")


def modelled(trace: Trace, instances: int, sizes: tuple[int, ...], batches: int) -> list[dict[str, Any]]:
    """Return the mean modelled time per batch size and device, in units of one expert's weight read."""
    placement = trace.placement(instances)
    random = seeded("layer time", trace.shape, trace.routing)
    schedulers = {name: fastest_scheduler(name) for name in POLICIES}
    found = []
    for size in sizes:
        drawn = [trace.batch(random, size)[0] for _ in range(batches)]
        tokens = {
            name: [_tokens(schedulers[name](ids, placement, 0).phys_ids, placement) for ids in drawn]
            for name in POLICIES
        }
        for device, ridge in RIDGES.items():
            times = {name: float(np.mean([_time(each, ridge) for each in tokens[name]])) for name in POLICIES}
            found.append(
                {
                    "shape": trace.shape.name,
                    "routing": trace.routing,
                    "instances": instances,
                    "batch": size,
                    "device": device,
                    "ridge": ridge,
                    "time": {name: round(value, 3) for name, value in times.items()},
                }
            )
    return found


def _tokens(phys_ids: Ids, placement: Placement) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return int[G, C], the tokens of every replica."""
    instances, slots = placement.num_instances, placement.slots_per_instance
    return np.bincount(phys_ids.ravel(), minlength=instances * slots).reshape(instances, slots)


def _time(tokens: np.ndarray[Any, np.dtype[np.int64]], ridge: float) -> float:
    return float(np.where(tokens > 0, np.maximum(1.0, tokens / ridge), 0.0).sum(axis=1).max())
