"""One host that everything shares: it gives no more than its cores, and nothing changes where there is none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from janus.core.planning.deployment import Deployment, Load
from janus.core.planning.hardware import HardwareProfile
from janus.core.planning.host import Host, shared_s
from janus.core.planning.performance import alone_on_host, step_time
from janus.core.planning.sizes import ModelSizes
from janus.errors import ConfigError
from tests.core.planning.worlds import MODEL, PROFILE, models, profiles

SECONDS = st.just(0.0) | st.floats(1e-6, 1.0)
BUSY = {"gateway_message_s": 2e-4, "gateway_token_s": 5e-5, "client_token_s": 2e-5}


@st.composite
def hosts(draw: st.DrawFn) -> tuple[HardwareProfile, Deployment]:
    """A profile of one host, and instances on it."""
    profile, cores = draw(profiles(shared=True)), draw(st.sampled_from([8, 16, 24]))
    cache = {"cache_bytes": draw(st.sampled_from([0.0, 1e6, 1e9])), "cold_layer_s": draw(st.floats(0, 1e-3))}
    profile = replace(profile, host=Host(cores=cores, **cache, **{name: draw(st.floats(0, 1e-3)) for name in BUSY}))
    device = profile.device()
    return profile, Deployment(
        attention=draw(st.integers(1, 12)),
        experts=draw(st.integers(1, 12)),
        attention_device=device,
        expert_device=device,
        micro_batches=draw(st.integers(1, 2)),
    )


def a_max(experts: int, batch: float) -> float:
    return 2.0 + 6.0 / experts * (1 - np.exp(-batch / 8))


@given(alone=SECONDS, share=st.floats(0, 1), beside=SECONDS, others=SECONDS, more=SECONDS)
def test_the_host_gives_no_more_than_it_has(
    alone: float, share: float, beside: float, others: float, more: float
) -> None:
    cores = share * alone
    seconds = shared_s(alone, cores=cores, beside=beside, others=others)
    assert seconds >= (alone + beside) * (1 - 1e-9) - 1e-15
    assert seconds >= (cores + beside + others) * (1 - 1e-9) - 1e-15
    assert seconds <= (alone + beside + others) * (1 + 1e-9) + 1e-15
    assert shared_s(alone, cores=cores, beside=beside, others=others + more) >= seconds * (1 - 1e-9) - 1e-15
    assert shared_s(alone, cores=cores, beside=beside + more, others=others) >= seconds * (1 - 1e-9) - 1e-15
    assert shared_s(alone, cores=cores, beside=beside, others=0.0) == pytest.approx(alone + beside)


@given(hosts(), models(), st.floats(1, 64), st.floats(0, 2000))
def test_steps_of_all_instances_want_no_more_than_the_cores(
    drawn: tuple[HardwareProfile, Deployment], model: ModelSizes, streams: float, context: float
) -> None:
    profile, where = drawn
    load = Load(batch=streams * where.attention, context=context)
    step = step_time(model, profile, where, load, a_max=a_max)
    alone, cores, beside = alone_on_host(model, profile, where, load, a_max=a_max)
    assert 0 < cores <= alone.total_s
    assert step.total_s >= where.attention * (cores + beside) * (1 - 1e-9)
    if where.attention == 1:
        assert step.total_s == pytest.approx(alone.total_s + beside)


@given(hosts(), models(), st.floats(1, 64))
def test_others_that_compute_a_prompt_are_waited_for(
    drawn: tuple[HardwareProfile, Deployment], model: ModelSizes, streams: float
) -> None:
    profile, where = drawn
    load = Load(batch=streams * where.attention, context=100)
    step = step_time(model, profile, where, load, a_max=a_max)
    alike = step_time(model, profile, where, load, a_max=a_max, at_experts=load)
    longer = step_time(model, profile, where, load, a_max=a_max, at_experts=replace(load, prefill=500.0))
    assert alike.total_s == pytest.approx(step.total_s)
    if where.attention == 1:
        assert longer.total_s == pytest.approx(step.total_s)
    else:
        assert longer.total_s > step.total_s


@given(hosts(), models(), st.floats(1, 64), st.floats(0, 500))
def test_a_plane_is_priced_as_its_points_are(
    drawn: tuple[HardwareProfile, Deployment], model: ModelSizes, streams: float, prefill: float
) -> None:
    profile, where = drawn
    attention, experts = np.array([[1.0], [3.0], [9.0]]), np.array([[1.0, 2.0, 5.0, 30.0]])
    load = Load(batch=streams, context=100, prefill=prefill)
    plane = step_time(
        model,
        profile,
        replace(where, attention=attention, experts=experts),  # type: ignore[arg-type]  # elementwise
        load,
        a_max=a_max,
    )
    for a, e in np.ndindex(3, 4):
        one = replace(where, attention=int(attention[a, 0]), experts=int(experts[0, e]))
        point = step_time(model, profile, one, load, a_max=a_max).total_s
        assert np.broadcast_to(plane.total_s, (3, 4))[a, e] == pytest.approx(point, rel=1e-9)


def test_three_expert_instances_on_two_cores_compute_in_two_turns() -> None:
    host = Host(cores=2)
    assert [float(host.turns(n, 1)) for n in (1, 2, 3, 4, 5)] == [1, 1, 2, 2, 3]
    assert [float(host.thinner(n, 1)) for n in (1, 2, 3)] == [1, 2, 2]
    # One thread each, whatever their number: the device is a core.
    assert [float(host.thinner(n, 2)) for n in (1, 2, 3)] == [1, 1, 1]
    assert [float(host.turns(n, 2)) for n in (1, 2, 3)] == [1, 1, 2]
    # Eight cores for three: two threads each, and two cores idle.
    assert (float(Host(cores=8).thinner(3, 1)), float(Host(cores=8).turns(3, 1))) == (4, 1)


def test_weights_push_out_no_more_than_the_cache_holds() -> None:
    host = Host(cores=2, cache_bytes=32e6, cold_layer_s=2e-4)
    assert [host.cold_s(weights) for weights in (0.0, 8e6, 32e6, 64e6)] == [0.0, 5e-5, 2e-4, 2e-4]
    assert host.cold_s(np.array([8e6, 64e6])).tolist() == [5e-5, 2e-4]
    # Not known how large it is: nothing is said of it.
    assert Host(cores=2, cold_layer_s=2e-4).cold_s(64e6) == 0


def test_what_a_layer_finds_cold_lengthens_the_exchange() -> None:
    device = replace(PROFILE.device(), shared_cores=1)
    host = Host(cores=8, cache_bytes=MODEL.expert_bytes, cold_layer_s=2e-4)
    profile = replace(PROFILE, devices={device.name: device}, host=host)
    where = Deployment(attention=1, experts=2, attention_device=device, expert_device=device)
    warm = replace(profile, host=replace(host, cold_layer_s=0.0))
    load = Load(batch=4, context=100)
    cold_s, warm_s = (step_time(MODEL, each, where, load, a_max=a_max).exchange_s for each in (profile, warm))
    assert cold_s - warm_s == pytest.approx(MODEL.moe_layers * 2e-4)


def test_a_host_without_cores_costs_nothing_and_may_not() -> None:
    assert Host().message_s(64) == Host().request_s == 0
    with pytest.raises(ConfigError, match="give the cores"):
        Host(gateway_token_s=1e-5)
    with pytest.raises(ConfigError, match="give 0 or more"):
        Host(cores=2, client_token_s=-1e-5)
