"""The steady state: Little's law holds, what rises with what, and percentiles against the exact law and a queue."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus.core.planning.performance import Load, step_time
from janus.core.planning.steady import SteadyState, Traffic, steady_state
from janus.errors import ConfigError
from tests.core.planning.worlds import MODEL, PROFILE, deployment, models, profiles, spread

DECODING = Traffic(requests_s=4, prompt_tokens=0, output_tokens=64)
CHAT = Traffic(requests_s=4, prompt_tokens=300, output_tokens=200)


def settled(traffic: Traffic, attention: int = 2, experts: int = 8, **more: Any) -> SteadyState:
    given: dict[str, Any] = {"a_max": spread, "most_streams": 2000.0 * attention}
    return steady_state(MODEL, PROFILE, deployment(attention, experts), traffic, **(given | more))


def step_s(batch: float, context: float, attention: int = 2, experts: int = 8) -> float:
    load = Load(batch=batch, context=context)
    return float(step_time(MODEL, PROFILE, deployment(attention, experts), load, a_max=spread).total_s)


@settings(max_examples=60, deadline=None)
@given(st.data(), models())
def test_littles_law_holds_where_it_settles(data: st.DataObject, model: Any) -> None:
    profile = data.draw(profiles())
    where = deployment(
        data.draw(st.integers(1, 12)),
        data.draw(st.integers(1, 12)),
        attention_device=profile.device(),
        expert_device=profile.device(),
        micro_batches=data.draw(st.integers(1, 2)),
    )
    traffic = Traffic(
        requests_s=data.draw(st.floats(0.01, 300)),
        prompt_tokens=data.draw(st.floats(0, 3000)),
        output_tokens=data.draw(st.floats(1, 800)),
    )
    most = data.draw(st.floats(1, 5000))

    def a_max(experts: Any, batch: Any) -> Any:
        return spread(experts, batch, model=model, slots=model.experts)

    found = steady_state(model, profile, where, traffic, a_max=a_max, most_streams=most)
    alone = step_time(model, profile, where, Load(batch=found.batch, context=traffic.context), a_max=a_max).total_s
    assert 1 <= found.batch <= most
    if math.isinf(found.tpot_s):
        # Even without prompts, or with them, the most streams get less than arrives.
        assert found.batch == most
        assert math.isinf(found.tpot_tail_s)
        return
    assert found.tpot_s >= alone * (1 - 1e-9)
    assert found.tpot_tail_s >= found.tpot_s
    assert found.prompt_step_s >= alone * (1 - 1e-9)
    if found.batch < most:
        assert found.batch == pytest.approx(1 + traffic.tokens_s * found.tpot_s, rel=2e-3)


def test_the_batch_is_that_of_plain_bisection() -> None:
    for rate in (0.5, 3, 12, 40):
        traffic = replace(DECODING, requests_s=rate)
        low, high = 1.0, 4000.0
        for _ in range(60):
            middle = (low + high) / 2
            less = middle - 1 - traffic.tokens_s * step_s(middle, traffic.context) < 0
            low, high = (middle, high) if less else (low, middle)
        assert settled(traffic).batch == pytest.approx(high, rel=1e-4)


def test_little_work_is_one_stream_and_too_much_does_not_settle() -> None:
    idle = settled(replace(DECODING, requests_s=1e-3))
    assert idle.batch == pytest.approx(1, abs=0.01)
    assert idle.tpot_s == pytest.approx(step_s(1, DECODING.context), rel=1e-3)
    # Room for one stream is enough as long as it is not busy all the time.
    assert math.isfinite(settled(replace(DECODING, requests_s=0.1), most_streams=1).tpot_s)
    assert math.isinf(settled(replace(DECODING, requests_s=1.0), most_streams=1).tpot_s)
    flooded = settled(replace(DECODING, requests_s=1e6))
    assert math.isinf(flooded.tpot_s)
    assert math.isinf(flooded.ttft_s)
    nothing = settled(replace(CHAT, requests_s=0.0))
    assert (nothing.batch, nothing.prefill_use) == (1, 0)
    assert math.isinf(settled(CHAT, most_streams=0).tpot_s)


def test_prompts_share_the_steps() -> None:
    alone, chat = settled(replace(CHAT, prompt_tokens=0)), settled(CHAT)
    longer = settled(replace(CHAT, prompt_tokens=3000))
    assert alone.tpot_s < chat.tpot_s < longer.tpot_s
    assert alone.prompt_step_s == pytest.approx(alone.step.total_s)
    assert chat.prompt_step_s > chat.step.total_s
    assert chat.ttft_s < longer.ttft_s
    # More arrives than steps have room for: prompts pile up although streams would settle.
    piled = settled(replace(CHAT, prompt_tokens=3000, requests_s=12), token_budget=64)
    assert piled.prefill_use > 1
    assert math.isinf(piled.ttft_s)


def test_more_load_and_bursts_are_never_quicker() -> None:
    rates = [settled(replace(CHAT, requests_s=rate)) for rate in np.linspace(0.2, 12, 12)]
    for name in ("batch", "batch_tail", "tpot_s", "tpot_tail_s"):
        values = [getattr(each, name) for each in rates]
        assert values == sorted(values)
    calm, burst = settled(replace(CHAT, arrival_cv=0.5)), settled(replace(CHAT, arrival_cv=3))
    assert calm.tpot_s == burst.tpot_s
    assert calm.tpot_tail_s < burst.tpot_tail_s
    high, higher = settled(CHAT, percentile=90), settled(CHAT, percentile=99.9)
    assert high.tpot_tail_s < higher.tpot_tail_s


def test_a_plane_settles_as_its_points_do() -> None:
    attention, experts = np.array([[1], [4]]), np.array([[6, 9, 20]])
    plane = steady_state(
        MODEL,
        PROFILE,
        deployment(attention, experts),  # type: ignore[arg-type]  # elementwise
        CHAT.times(3),
        a_max=spread,
        most_streams=400.0 * attention,  # type: ignore[arg-type]
    )
    for a, e in np.ndindex(2, 3):
        point = settled(CHAT.times(3), int(attention[a, 0]), int(experts[0, e]), most_streams=400.0 * attention[a, 0])
        for name in ("batch", "batch_tail", "tpot_s", "tpot_tail_s", "ttft_s", "prompt_step_s", "prefill_use"):
            found = np.broadcast_to(getattr(plane, name), (2, 3))[a, e]
            assert found == pytest.approx(getattr(point, name), rel=1e-3)


@pytest.mark.parametrize("rate", [1.0, 4.0, 12.0])
def test_the_batch_at_a_percentile_is_that_of_the_exact_law(rate: float) -> None:
    """p(n) = p(0) prod D T(j) / j of the symmetric queue."""
    traffic = replace(DECODING, requests_s=rate)
    counts = np.arange(1, 1500)
    steps = np.array([step_s(float(n), traffic.context) for n in counts])
    logs = np.concatenate([[0.0], np.cumsum(np.log(traffic.tokens_s * steps / counts))])
    weights = np.exp(logs - logs.max())
    exact = int(np.searchsorted(np.cumsum(weights / weights.sum()), 0.99))
    # A request sees itself besides.
    assert settled(traffic).batch_tail - 1 == pytest.approx(exact, rel=0.04, abs=1.5)


@pytest.mark.parametrize("rate", [0.25, 2.0, 8.0])
def test_tpot_over_requests_is_that_of_a_queue_that_is_played(rate: float) -> None:
    """Poisson arrivals join the next step; each stream gets a token per step until it has its own."""
    traffic = replace(DECODING, requests_s=rate, output_tokens=64)
    random = np.random.default_rng(4)
    times = {n: step_s(float(n), traffic.context) for n in range(1, 400)}
    now, left, since, served = 0.0, [], [], []
    arrivals = iter(np.cumsum(random.exponential(1 / rate, 5000)).tolist())
    after = next(arrivals)
    while after is not None:
        if not left:
            now = max(now, after)
        while after is not None and after <= now:
            left.append(64)
            since.append(now)
            after = next(arrivals, None)
        now += times[len(left)]
        left = [each - 1 for each in left]
        served += [(now - begun) / 64 for each, begun in zip(left, since, strict=True) if not each]
        since = [begun for each, begun in zip(left, since, strict=True) if each]
        left = [each for each in left if each]
    found = settled(traffic)
    assert found.tpot_s == pytest.approx(float(np.mean(served)), rel=0.02)
    assert found.tpot_tail_s == pytest.approx(float(np.percentile(served, 99)), rel=0.05)


def test_prompts_in_a_queue_that_is_played_lengthen_tpot_and_its_tail() -> None:
    """One attention instance: prompts in turn, as many tokens a step as the budget leaves, and streams besides."""
    traffic, budget = Traffic(requests_s=1.2, prompt_tokens=1200, output_tokens=64), 512
    where, times = deployment(1, 8), {}

    def took(streams: int, prefill: int) -> float:
        if (streams, prefill) not in times:
            load = Load(batch=streams, context=traffic.context, prefill=prefill, prefill_context=600)
            times[streams, prefill] = float(step_time(MODEL, PROFILE, where, load, a_max=spread).total_s)
        return times[streams, prefill]

    random = np.random.default_rng(8)
    arrivals = np.cumsum(random.exponential(1 / traffic.requests_s, 6000)).tolist()
    now, waiting, left, since, served, first = 0.0, [], [], [], [], []
    while arrivals or waiting or left:
        if not waiting and not left:
            now = max(now, arrivals[0])
        while arrivals and arrivals[0] <= now:
            waiting.append([1200, arrivals.pop(0)])
        room, computed, ready = budget - len(left), 0, []
        while waiting and computed < room:
            tokens = min(waiting[0][0], room - computed)
            computed += tokens
            waiting[0][0] -= tokens
            if not waiting[0][0]:
                ready.append(waiting.pop(0)[1])
        now += took(len(left), computed)
        left = [each - 1 for each in left]
        served += [(now - begun) / 64 for each, begun in zip(left, since, strict=True) if not each]
        since = [begun for each, begun in zip(left, since, strict=True) if each] + [now] * len(ready)
        left = [each for each in left if each] + [64] * len(ready)
        first += [now - arrived for arrived in ready]
    found = settled(traffic, 1, token_budget=budget)
    assert found.tpot_s > 1.2 * found.step.total_s
    assert found.tpot_s == pytest.approx(float(np.mean(served)), rel=0.06)
    assert found.tpot_tail_s == pytest.approx(float(np.percentile(served, 99)), rel=0.1)
    assert found.ttft_s == pytest.approx(float(np.mean(first)), rel=0.2)


def test_longer_answers_are_seen_for_longer() -> None:
    even, uneven = (Traffic(requests_s=1, prompt_tokens=100, output_tokens=200, output_cv=cv) for cv in (0.0, 1.0))
    assert (even.context, uneven.context) == (200, 300)
    assert even.times(2).tokens_s == 2 * even.tokens_s == 400
    assert even.longest == 300


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("requests_s", -1),
        ("prompt_tokens", math.nan),
        ("output_tokens", 0),
        ("arrival_cv", -1),
        ("output_cv", math.inf),
    ],
)
def test_traffic_that_cannot_be_is_named(field: str, value: float) -> None:
    with pytest.raises(ConfigError) as caught:
        replace(CHAT, **{field: value})
    assert caught.value.field == field


def test_a_percentile_that_is_none_is_named() -> None:
    with pytest.raises(ConfigError, match="percentile"):
        settled(CHAT, percentile=100)
