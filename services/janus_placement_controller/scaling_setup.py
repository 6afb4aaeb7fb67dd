"""Puts the autoscaler together from the controller's options."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry

from janus.cluster.scalers import CommandScaler, ControlSocketScaler, Scaler
from janus.config.options import ControllerOptions
from janus.core.membership import Membership
from janus.core.membership_events import Event
from janus.core.placing.contract import Activity
from janus.core.scaling import ScalingConfig
from janus.core.scaling.target import Model
from janus_placement_controller.autoscaling import Scaling, scaling_config
from janus_placement_controller.scaling_metrics import ScalingMetrics
from janus_placement_controller.scaling_model import follow_routing, learned_model, planned_model
from janus_placement_controller.statistics import RoutedModel

if TYPE_CHECKING:
    from janus.core.scaling.planned import PlannedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingSetup:
    """What an autoscaler is made of."""

    options: ControllerOptions
    routed: RoutedModel
    config: ScalingConfig
    model: Model
    #: The same, where it is a profile's.
    planned: PlannedModel | None
    scaler: Scaler | None

    def scaling(
        self, membership: Membership, *, apply: Callable[[Event], None], registry: CollectorRegistry
    ) -> Scaling:
        """Return the autoscaler of a cluster."""
        return Scaling(
            self.options.scaling,
            self.config,
            membership,
            apply=apply,
            scaler=self.scaler,
            model=self.model,
            metrics=ScalingMetrics(registry),
        )

    async def follow_routing(self, activity: Callable[[], Activity | None]) -> None:
        """Keep a profile's expectations up with the router, until cancelled; without a profile, there is nothing."""
        if self.planned is not None:
            await follow_routing(self.planned, self.options, self.routed, activity)


def prepare(options: ControllerOptions, routed: RoutedModel) -> ScalingSetup:
    """Return what ``--autoscale dry-run`` or ``on`` asks for. May take a second, for the profile's tables.

    Raises:
        ConfigError: the profile is none, or the command cannot be read.
    """
    config = scaling_config(options.scaling, monolithic=not options.expect_experts)
    planned = planned_model(options, config, routed) if options.scaling.hardware else None
    return ScalingSetup(
        options=options,
        routed=routed,
        config=config,
        model=planned or learned_model(config, routed),
        planned=planned,
        scaler=_scaler(options),
    )


def _scaler(options: ControllerOptions) -> Scaler | None:
    if options.scaling.autoscale == "dry-run":
        return None
    if options.scaling.scale_command:
        return CommandScaler(options.scaling.scale_command)
    return ControlSocketScaler(Path(options.control_socket))
