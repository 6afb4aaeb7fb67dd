"""The systems of the comparison: each decides as it is described, and all are priced by the same ``step_time``."""

from __future__ import annotations

from dataclasses import replace

import pytest

from janus.core.exchange_cost import LinkCost
from janus.core.placing import POLICIES
from janus.core.planning.baselines import (
    BASELINES,
    MEGASCALE,
    MONOLITHIC,
    MONOLITHIC_SIZES,
    XDEEPSERVE,
    Setting,
    System,
    balanced_attention,
    separate,
    whole_model,
)
from janus.core.planning.performance import Load, step_time
from janus.core.scheduling import SCHEDULERS
from janus.errors import ConfigError
from tests.core.planning import worlds
from tests.core.planning.worlds import MODEL

DEVICE = replace(
    worlds.DEVICE,
    name="fast",
    memory_bytes=80e9,
    weight_bytes_s=2.5e12,
    kv_bytes_s=2.5e12,
    flops_s=5e14,
    attention_layer_s=4e-5,
    expert_layer_s=3e-5,
    step_s=1e-3,
    row_s=0.0,
)
#: Nodes of eight that share one link.
PROFILE = replace(
    worlds.PROFILE,
    devices={"fast": DEVICE},
    links_per_node=1,
    intra=LinkCost(message_s=2e-6, latency_s=4e-6, byte_s=1 / 350e9),
    inter=LinkCost(message_s=5e-6, latency_s=8e-6, byte_s=1 / 45e9),
)
LOAD = Load(batch=256, context=150)


def a_max(experts: int, batch: float) -> float:
    """Even routing, each expert once: distinct experts over instances, and what the busiest has more."""
    distinct = MODEL.experts * (1 - (1 - MODEL.top_k / MODEL.experts) ** batch)
    return min(distinct / experts + 1.0, MODEL.experts / experts)


SETTING = Setting(model=MODEL, profile=PROFILE, device=DEVICE, a_max=a_max, slots=27)


@pytest.mark.parametrize("name", BASELINES)
def test_each_names_policies_that_exist(name: str) -> None:
    system = BASELINES[name]
    assert system.placement in POLICIES
    assert system.scheduler in SCHEDULERS


@pytest.mark.parametrize("name", BASELINES)
def test_the_best_offer_keeps_the_slo_and_no_smaller_one_does(name: str) -> None:
    system = BASELINES[name]
    best = system.best(SETTING, LOAD, tpot_s=0.15)
    assert best is not None
    assert best.step.total_s <= 0.15
    smaller = [o for o in system.offers(SETTING, LOAD, 128) if o.devices < best.devices]
    assert all(offer.misfit or offer.step.total_s > 0.15 for offer in smaller)
    assert best.tokens_per_device_s(LOAD) == pytest.approx(256 / best.step.total_s / best.devices)


@pytest.mark.parametrize("name", BASELINES)
def test_an_slo_below_every_step_is_answered_by_none(name: str) -> None:
    assert BASELINES[name].best(SETTING, LOAD, tpot_s=1e-4) is None


def test_whole_models_come_in_four_sizes_and_a_device_counts_once() -> None:
    offers = list(MONOLITHIC.offers(SETTING, LOAD, 64))
    assert [offer.devices for offer in offers] == list(MONOLITHIC_SIZES)
    assert [offer.deployment.devices for offer in offers] == list(MONOLITHIC_SIZES)
    assert all(offer.deployment.experts == offer.devices for offer in offers)


def test_a_whole_model_shares_attention_out_where_its_weights_do_not_fit_every_device() -> None:
    """160 experts over 8 devices are 56 GB of each; 25 GB of attention beside them are too much for 72 usable ones."""
    offer = whole_model(SETTING, LOAD, devices=8)
    assert not offer.misfit
    assert offer.deployment.tensor_parallel > 1
    roomy = replace(SETTING, device=replace(DEVICE, memory_bytes=200e9))
    everyone = [whole_model(roomy, Load(batch=batch, context=150), devices=8) for batch in (8, 4096)]
    assert not any(each.misfit for each in everyone)


def test_a_whole_model_that_fits_in_no_way_says_so() -> None:
    tiny = replace(SETTING, device=replace(DEVICE, memory_bytes=40e9))
    assert "GB per device" in whole_model(tiny, LOAD, devices=8).misfit


def test_megascale_takes_the_fewest_attention_instances_that_balance_its_experts() -> None:
    crowded = Load(batch=2048, context=4000)
    offer = balanced_attention(SETTING, crowded, experts=8, most=100)
    assert offer is not None
    attention = offer.deployment.attention
    assert attention > 1
    assert offer.step.attention_s + offer.step.other_s <= offer.step.experts_s
    one_less = separate("x", SETTING, crowded, attention=attention - 1, experts=8, modes=("direct",))
    assert one_less.misfit or one_less.step.attention_s + one_less.step.other_s > one_less.step.experts_s


def test_xdeepserve_comes_in_fours() -> None:
    for offer in XDEEPSERVE.offers(SETTING, LOAD, 40):
        assert offer.deployment.attention % 4 == 0
        assert offer.deployment.experts % 4 == 0
        assert offer.deployment.experts >= SETTING.least_experts


@pytest.mark.parametrize("system", [MEGASCALE, XDEEPSERVE])
def test_pools_of_their_own_send_a_message_per_pair(system: System) -> None:
    offers = list(system.offers(SETTING, LOAD, 40))
    assert offers
    assert {offer.step.exchange for offer in offers} == {"direct"}
    for offer in offers:
        assert step_time(MODEL, PROFILE, offer.deployment, LOAD, a_max=a_max).total_s <= offer.step.total_s + 1e-12


def test_too_few_slots_are_named() -> None:
    offer = separate("x", SETTING, LOAD, attention=1, experts=5)
    assert offer.misfit == "5 instances of 27 slots do not hold 160 experts"
    with pytest.raises(ConfigError, match="slots"):
        replace(SETTING, slots=0)
