"""The autoscaler is put together from options: with a profile and without, over the control socket and a command."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from janus.cluster.scalers import CommandScaler, ControlSocketScaler
from janus.config.options import CommonOptions, ControllerOptions
from janus.config.scaling import ScalingOptions
from janus.core.placing.contract import Activity
from janus.core.planning.performance import AMax
from janus.core.scaling import Counts
from janus.core.scaling.demand import Demand
from janus.core.scaling.learned import LearnedModel
from janus.core.scaling.planned import PlannedModel
from janus.core.scaling.target import bears, fewest
from janus.errors import ConfigError
from janus_placement_controller.scaling_setup import ScalingSetup, prepare
from janus_placement_controller.statistics import RoutedModel

MODEL = Path(__file__).parents[2] / "models" / "janus-tiny"


def options(scaling: ScalingOptions, *, experts: int = 2) -> ControllerOptions:
    return ControllerOptions(
        common=CommonOptions(secret="s" * 16, name="controller-0"),
        model=MODEL,
        expect_experts=experts,
        control_socket="/run/janus/control.sock",
        scaling=scaling,
    )


ON = ScalingOptions(autoscale="on", slo_tpot_s=0.1)


@pytest.fixture(scope="module")
def routed() -> RoutedModel:
    from janus.model.checkpoint import Checkpoint

    checkpoint = Checkpoint.open(MODEL)
    config = checkpoint.config
    checkpoint.close()
    return RoutedModel(
        fingerprint="f", num_layers=config.num_moe_layers, num_experts=config.num_experts, top_k=config.top_k
    )


def test_without_a_profile_it_learns(routed: RoutedModel) -> None:
    setup = prepare(options(ON), routed)
    assert isinstance(setup.model, LearnedModel)
    assert isinstance(setup.scaler, ControlSocketScaler)
    assert setup.config.high == Counts(attention=8, experts=8)


def test_a_command_goes_before_the_socket_and_a_dry_run_has_neither(routed: RoutedModel) -> None:
    command = replace(ON, scale_command="scale.sh {attention} {experts}")
    assert isinstance(prepare(options(command), routed).scaler, CommandScaler)
    assert prepare(options(replace(command, autoscale="dry-run")), routed).scaler is None


def test_a_monolithic_cluster_has_no_experts_to_count(routed: RoutedModel) -> None:
    setup = prepare(options(ON, experts=0), routed)
    assert (setup.config.low.experts, setup.config.high.experts) == (0, 0)
    with pytest.raises(ConfigError, match="--hardware"):
        prepare(options(replace(ON, hardware="h100-80gb"), experts=0), routed)


def test_a_profile_that_is_not_there_is_named(routed: RoutedModel) -> None:
    with pytest.raises(ConfigError, match="h100-80gb"):
        prepare(options(replace(ON, hardware="h100-80g")), routed)


@pytest.fixture(scope="module")
def planned(routed: RoutedModel) -> ScalingSetup:
    return prepare(options(replace(ON, hardware="h100-80gb", max_experts=4)), routed)


def test_a_profile_predicts_and_more_load_asks_for_more(planned: ScalingSetup) -> None:
    assert isinstance(planned.model, PlannedModel)
    assert planned.model.name == "h100-80gb"
    most, least = planned.config.high, planned.config.low
    totals = []
    for requests_s in (1.0, 1e4, 1e5):
        demand = Demand(tokens_s=50 * requests_s, requests_s=requests_s, prompt_tokens=20, output_tokens=50)
        outlook = planned.model.outlook(demand, slo_s=0.1, most=most, streams_most=64)
        found = fewest(partial(bears, outlook), least, most)
        totals.append(found.total if found is not None else 99)
    assert totals == sorted(totals)
    assert totals[0] < totals[-1]


async def test_a_max_follows_what_the_router_chose(
    planned: ScalingSetup, routed: RoutedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert planned.planned is not None
    used, use = asyncio.Event(), planned.planned.use_a_max

    def noted(tables: Callable[[int], AMax]) -> None:
        use(tables)
        used.set()

    monkeypatch.setattr(planned.planned, "use_a_max", noted)
    demand = Demand(tokens_s=5000, requests_s=100, prompt_tokens=20, output_tokens=50)
    two = Counts(attention=1, experts=2)

    def tpot() -> float:
        outlook = planned.model.outlook(demand, slo_s=0.1, most=two, streams_most=64)
        return outlook.predict(two).tpot_mean_s

    before = tpot()
    # All tokens choose the same experts: fewer are activated than when all are alike.
    trace = np.tile(np.arange(routed.top_k, dtype=np.uint16), (routed.num_layers, 512, 1))
    seen = Activity(counts=np.ones((routed.num_layers, routed.num_experts)), trace=trace)
    following = asyncio.create_task(planned.follow_routing(lambda: seen), name="follow")
    try:
        async with asyncio.timeout(60):
            await used.wait()
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    assert tpot() < before


async def test_what_is_learned_follows_nothing(routed: RoutedModel) -> None:
    async with asyncio.timeout(5):
        await prepare(options(ON), routed).follow_routing(lambda: None)
