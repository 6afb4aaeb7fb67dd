"""What the autoscaler expects of other numbers of instances: learned alone, or from a hardware profile."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import structlog

from janus.config.options import ControllerOptions
from janus.core.placing.contract import Activity
from janus.core.scaling import ScalingConfig
from janus.core.scaling.learned import LearnedModel
from janus.errors import ConfigError
from janus_placement_controller.statistics import RoutedModel

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from janus.core.planning.activation import AMaxTable
    from janus.core.scaling.planned import PlannedModel

log = structlog.get_logger()

#: How often a_max is estimated anew from what the router chose, and with how many batches of each size and layer.
_REFRESH_S, _DRAWS = 300.0, 8
#: Tokens of synthetic routing, in which all experts are alike, for as long as nothing has been sampled.
_SYNTHETIC_TOKENS = 4096


def learned_model(config: ScalingConfig, model: RoutedModel) -> LearnedModel:
    """Return a model that needs no profile."""
    return LearnedModel(config, experts=model.num_experts, top_k=model.top_k)


def planned_model(options: ControllerOptions, config: ScalingConfig, model: RoutedModel) -> PlannedModel:
    """Return the model of ``--hardware``, with a_max of synthetic routing at first. Takes a second.

    Raises:
        ConfigError: the profile is none, or the model's config.json lacks what the planner counts.
    """
    from janus.core.planning.catalog import sizes_of
    from janus.core.planning.routing import synthetic_routing
    from janus.core.scaling.planned import PlannedModel
    from janus.profiles import load_profile

    if not config.high.experts:
        problem = "predicts attention and expert instances, and this cluster is monolithic"
        raise ConfigError("--hardware", problem, "leave it out: what clients see is learned from")
    path = options.model / "config.json"
    sizes = sizes_of(json.loads(path.read_text(encoding="utf-8")), name=options.model.name)
    ids = synthetic_routing(sizes.experts, sizes.top_k, _SYNTHETIC_TOKENS, layers=1)
    return PlannedModel.of(
        config,
        model=sizes,
        profile=load_profile(options.scaling.hardware),
        slots=slots_of(options, model),
        a_max=Tables(ids, model.num_experts, config.high.experts, options.placement),
    )


def slots_of(options: ControllerOptions, model: RoutedModel) -> int:
    """Return C: what was asked for, or the even share that the cluster starts with."""
    even = math.ceil(model.num_experts / max(1, options.expect_experts))
    return min(model.num_experts, max(options.slots_per_instance, even))


class Tables:
    """Tables of a_max by C, made when they are asked for, of ids int[L, S, K] of experts."""

    def __init__(self, ids: npt.NDArray[np.integer[Any]], experts: int, most: int, policy: str) -> None:
        self._ids, self._experts, self._most, self._policy = ids, experts, most, policy
        self._made: dict[int, AMaxTable] = {}

    def __call__(self, slots: int) -> AMaxTable:
        """Return the table of ``slots`` slots per instance and layer."""
        from janus.core.planning.activation import estimate, instance_grid

        if slots not in self._made:
            first = -(-self._experts // slots)
            self._made[slots] = estimate(
                self._ids,
                num_experts=self._experts,
                slots=slots,
                instances=instance_grid(first, max(first, self._most)),
                policy=self._policy,
                draws=_DRAWS,
            )
        return self._made[slots]


async def follow_routing(
    planned: PlannedModel, options: ControllerOptions, model: RoutedModel, activity: Callable[[], Activity | None]
) -> None:
    """Estimate a_max anew from what the router chose lately, every few minutes until cancelled."""
    slots = slots_of(options, model)
    while True:
        seen = activity()
        if seen is not None and seen.trace is not None and seen.trace.shape[1] >= 2:
            tables = Tables(seen.trace, model.num_experts, options.scaling.max_experts, options.placement)
            try:
                await asyncio.to_thread(tables, slots)
            except Exception as error:
                # The tables that there are go on serving; whoever watches must know.
                log.exception("a_max_not_estimated", problem=str(error))
            else:
                planned.use_a_max(tables)
                log.info("a_max_estimated", tokens=seen.trace.shape[1], slots=slots)
        await asyncio.sleep(_REFRESH_S)
