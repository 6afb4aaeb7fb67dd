"""``step_time``: what rises with what, whatever the model and the hardware are; and what it is by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus.core.exchange_routes import gathers
from janus.core.planning.hardware import HardwareProfile
from janus.core.planning.layer_times import dispatch_shape
from janus.core.planning.performance import Deployment, Load, step_time
from janus.core.planning.sizes import ModelSizes
from janus.errors import ConfigError
from tests.core.planning.worlds import DEVICE, MODEL, PROFILE, deployment, models, profiles, spread

MANY = settings(max_examples=60, deadline=None)
counts = st.integers(1, 40)
batches = st.floats(1, 2000)
contexts = st.floats(0, 20_000)


def drawn(data: st.DataObject, profile: HardwareProfile, **more: Any) -> Deployment:
    given: dict[str, Any] = {
        "attention": data.draw(counts),
        "experts": data.draw(counts),
        "attention_device": profile.device(),
        "expert_device": profile.device(),
        "tensor_parallel": data.draw(st.sampled_from([1, 2, 8])),
        "micro_batches": data.draw(st.sampled_from([1, 2, 3])),
    }
    return Deployment(**(given | more))


def time_of(model: ModelSizes, profile: HardwareProfile, where: Deployment, load: Load, extra: float = 0.0) -> Any:
    def a_max(experts: Any, batch: Any) -> Any:
        return spread(experts, batch, model=model, slots=model.experts) + extra

    return step_time(model, profile, where, load, a_max=a_max)


def gathered(model: ModelSizes, profile: HardwareProfile, where: Deployment, load: Load) -> bool:
    """Whether a batch is small enough for its node to gather it: below, other ways are open."""
    shape = dispatch_shape(model, profile, where, load)
    return gathers("two-phase", members=shape.members, batch_bytes=shape.batch_bytes / where.micro_batches)


@MANY
@given(st.data(), models(), st.booleans())
def test_nothing_is_negative_and_the_whole_is_the_sum(data: st.DataObject, model: ModelSizes, shared: bool) -> None:
    profile = data.draw(profiles(shared=shared))
    where = drawn(data, profile)
    load = Load(batch=data.draw(st.floats(0, 2000)), context=data.draw(contexts), prefill=data.draw(st.floats(0, 4000)))
    step = time_of(model, profile, where, load)
    parts = step.attention_s, step.exchange_s, step.experts_s, step.other_s
    assert min(parts) >= 0
    assert -1e-12 <= step.hidden_s <= sum(parts)
    assert step.total_s == pytest.approx(sum(parts) - step.hidden_s)
    # However much overlaps, the experts need their time.
    assert step.total_s >= step.experts_s * (1 - 1e-9)


@MANY
@given(st.data(), models(), st.booleans())
def test_more_to_do_takes_no_less_time(data: st.DataObject, model: ModelSizes, shared: bool) -> None:
    profile = data.draw(profiles(shared=shared))
    where = drawn(data, profile)
    less = Load(batch=data.draw(batches), context=data.draw(contexts), prefill=data.draw(st.floats(0, 1000)))
    more = Load(
        batch=less.batch + data.draw(st.floats(0, 500)),
        context=less.context + data.draw(contexts),
        prefill=less.prefill + data.draw(st.floats(0, 500)),
    )
    first, second = time_of(model, profile, where, less), time_of(model, profile, where, more)
    for name in ("attention_s", "experts_s", "other_s"):
        assert getattr(second, name) >= getattr(first, name) * (1 - 1e-12)
    if gathered(model, profile, where, less) == gathered(model, profile, where, more):
        assert second.total_s >= first.total_s * (1 - 1e-12)
    assert time_of(model, profile, where, less, extra=1.0).total_s >= first.total_s * (1 - 1e-12)


@MANY
@given(st.data(), models())
def test_more_instances_are_never_slower_in_their_own_term(data: st.DataObject, model: ModelSizes) -> None:
    profile = data.draw(profiles())
    where = drawn(data, profile)
    load = Load(batch=data.draw(batches), context=data.draw(contexts), prefill=data.draw(st.floats(0, 1000)))
    step = time_of(model, profile, where, load)
    attention = time_of(model, profile, replace(where, attention=where.attention + 1), load)
    experts = time_of(model, profile, replace(where, experts=where.experts + 1), load)
    assert attention.attention_s <= step.attention_s * (1 + 1e-12)
    assert attention.other_s <= step.other_s * (1 + 1e-12)
    assert experts.experts_s <= step.experts_s * (1 + 1e-12)


@MANY
@given(st.data(), models(), st.integers(1, 16))
def test_processes_on_the_same_cores_do_not_work_faster_than_the_cores(
    data: st.DataObject, model: ModelSizes, cores: int
) -> None:
    profile = data.draw(profiles())
    device = replace(profile.device(), shared_cores=cores)
    where = drawn(data, profile, attention_device=device, expert_device=device, tensor_parallel=1)
    alone = replace(where, attention_device=profile.device(), expert_device=profile.device())
    load = Load(batch=data.draw(batches), context=data.draw(contexts))
    shared, apart = time_of(model, profile, where, load), time_of(model, profile, alone, load)
    assert shared.total_s >= apart.total_s * (1 - 1e-12)
    if where.attention + where.experts <= cores:
        assert shared.attention_s == apart.attention_s
        assert shared.experts_s == apart.experts_s
    layer = 1 - (model.layers - model.moe_layers) / model.layers
    work = where.attention * apart.attention_s * layer + where.experts * apart.experts_s
    assert shared.total_s >= work / cores * (1 - 1e-9) or where.attention < cores or where.experts < cores


@settings(max_examples=30, deadline=None)
@given(st.data(), models(), st.booleans())
def test_a_plane_is_priced_as_its_points_are(data: st.DataObject, model: ModelSizes, shared: bool) -> None:
    profile = data.draw(profiles(shared=shared))
    attention, experts = np.array([[1], [3], [8], [9]]), np.array([[1, 2, 5, 8, 30]])
    # One batch for all, or each its own.
    drawn_batches = data.draw(st.lists(batches, min_size=20, max_size=20) | st.lists(batches, min_size=1, max_size=1))
    batch = np.broadcast_to(np.array(drawn_batches).reshape(-1, 5 if len(drawn_batches) == 20 else 1), (4, 5))
    context, prefill = data.draw(contexts), data.draw(st.floats(0, 1000))
    where = drawn(data, profile)
    plane = time_of(
        model,
        profile,
        replace(where, attention=attention, experts=experts),  # type: ignore[arg-type]  # elementwise
        Load(batch=batch if len(drawn_batches) > 1 else drawn_batches[0], context=context, prefill=prefill),  # type: ignore[arg-type]
    )
    for a, e in np.ndindex(4, 5):
        one = replace(where, attention=int(attention[a, 0]), experts=int(experts[0, e]))
        point = time_of(model, profile, one, Load(batch=float(batch[a, e]), context=context, prefill=prefill))
        assert np.broadcast_to(plane.total_s, (4, 5))[a, e] == pytest.approx(point.total_s, rel=1e-9)
        for name in ("attention_s", "exchange_s", "experts_s", "other_s"):
            found = np.broadcast_to(getattr(plane, name), (4, 5))[a, e]
            assert found == pytest.approx(getattr(point, name), rel=1e-9)


def test_the_terms_of_equation_1_by_hand() -> None:
    step = time_of(MODEL, PROFILE, deployment(2, 6), Load(batch=64, context=1000))
    weights = MODEL.attention_params * 2 / DEVICE.weight_bytes_s
    cache = 32 * 1000 * 576 * 2 / DEVICE.kv_bytes_s
    shared = MODEL.shared_params * 2 / DEVICE.weight_bytes_s
    assert step.attention_s == pytest.approx(60 * (4e-4 + weights + cache) + 59 * shared)
    choices = 64 * 6 / 6
    experts = step.a_max * MODEL.expert_bytes / DEVICE.weight_bytes_s
    assert step.experts_s == pytest.approx(59 * (4e-4 + experts + choices * 1.5e-6))
    dense = MODEL.dense_params * 2 / DEVICE.weight_bytes_s
    assert step.other_s == pytest.approx(dense + MODEL.head_params * 2 / DEVICE.weight_bytes_s)
    # The shared experts run behind the exchange.
    assert step.hidden_s == pytest.approx(59 * shared)


def test_what_the_longer_of_reading_and_computing_does_not_hide_is_added() -> None:
    rows, load = 64.0, Load(batch=64, context=0)
    reading = MODEL.attention_params * 2 / DEVICE.weight_bytes_s
    computing = 2 * rows * MODEL.attention_params / DEVICE.flops_s
    times = []
    for exposed in (0.0, 0.25, 1.0):
        device = replace(DEVICE, exposed=exposed, attention_row_s=2e-6)
        where = replace(deployment(1, 6), attention_device=device)
        step = time_of(replace(MODEL, shared_params=0), PROFILE, where, load)
        times.append(step.attention_s / MODEL.layers - 4e-4 - rows * 2e-6)
    shorter, longer = sorted((reading, computing))
    assert times == pytest.approx([longer, longer + shorter / 4, longer + shorter])


def test_a_share_is_no_more_than_all() -> None:
    with pytest.raises(ConfigError, match=r"exposed.*is 1.5.*0 to 1"):
        replace(DEVICE, exposed=1.5)


def test_a_large_batch_is_bound_by_products_not_by_weights() -> None:
    rows = 4096.0
    step = time_of(
        replace(MODEL, kv_elements=1, context_flops=1), PROFILE, deployment(1, 6), Load(batch=rows, context=0)
    )
    products = 2 * rows * (60 * MODEL.attention_params + 59 * MODEL.shared_params) / DEVICE.flops_s
    assert step.attention_s == pytest.approx(60 * 4e-4 + products)


def test_latent_cache_is_repeated_by_tensor_parallelism_and_heads_are_divided() -> None:
    load = Load(batch=256, context=100_000)
    latent, heads = replace(MODEL, context_flops=1), replace(MODEL, context_flops=1, kv_parts=8)
    wide = deployment(1, 6, tensor_parallel=8)
    read = 256 * 100_000 * 576 * 2 / DEVICE.kv_bytes_s
    more = time_of(latent, PROFILE, wide, load).attention_s - time_of(heads, PROFILE, wide, load).attention_s
    assert more == pytest.approx(60 * read * 7 / 8)


def test_prompt_tokens_look_back_on_their_own_prompt() -> None:
    def attention(**more: Any) -> float:
        load = Load(batch=1, context=50_000, prefill=4096, **more)
        seconds: float = time_of(MODEL, PROFILE, deployment(1, 6), load).attention_s
        return seconds

    scores = 4096 * MODEL.context_flops / DEVICE.flops_s
    assert attention() - attention(prefill_context=1000) == pytest.approx(60 * scores * 49_000, rel=1e-6)


def test_two_micro_batches_hide_the_exchange_and_read_experts_twice() -> None:
    far = replace(PROFILE, inter=replace(PROFILE.inter, latency_s=5e-4))
    device = replace(DEVICE, expert_layer_s=0.0, attention_layer_s=0.0)
    where = deployment(2, 16, attention_device=device, expert_device=device)
    load = Load(batch=1024, context=4000)
    one = time_of(MODEL, far, where, load)
    two = time_of(MODEL, far, replace(where, micro_batches=2), load)
    assert two.experts_s > one.experts_s
    assert two.hidden_s > one.exchange_s
    assert two.total_s < one.total_s
