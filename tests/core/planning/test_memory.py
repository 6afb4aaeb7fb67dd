"""What devices hold: by hand for DeepSeek-V2, and that what is said to fit does."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus.core.planning.catalog import named
from janus.core.planning.memory import (
    USABLE_MEMORY,
    attention_memory,
    expert_memory,
    kv_bytes_per_stream,
    least_experts,
    most_slots,
    most_streams,
)
from janus.core.planning.sizes import ModelSizes
from janus.profiles import load_profile
from tests.core.planning.worlds import devices, models


def test_deepseek_v2_on_80_gb_is_that_of_the_paper() -> None:
    """Figure 17 is for 27 slots; 160 experts then need 6 instances."""
    model, device = named("DeepSeek-V2"), load_profile("h100-80gb").device()
    slots = most_slots(model, device, rows=512)
    assert (slots, least_experts(model, slots)) == (27, 6)
    held = expert_memory(model, device, slots=27, instances=6, rows=512)
    assert held.weights == 59 * 27 * 3 * 5120 * 1536 * 2
    assert held.redundant == pytest.approx(held.weights * (1 - 160 / 162))
    attention = attention_memory(model, device, streams=100, context=1000)
    assert attention.kv == 100 * 1000 * 60 * 576 * 2
    assert attention.fits
    assert attention.usable == USABLE_MEMORY * device.memory_bytes


@settings(max_examples=80, deadline=None)
@given(st.data(), models())
def test_what_is_said_to_fit_does_and_one_more_does_not(data: st.DataObject, model: ModelSizes) -> None:
    device = replace(data.draw(devices()), memory_bytes=data.draw(st.floats(1e6, 1e12)))
    rows, context = data.draw(st.floats(0, 4096)), data.draw(st.floats(1, 10_000))
    slots = most_slots(model, device, rows=rows)
    assert 0 <= slots <= model.experts
    assert not slots or expert_memory(model, device, slots=slots, instances=1, rows=rows).fits
    assert slots == model.experts or not expert_memory(model, device, slots=slots + 1, instances=1, rows=rows).fits
    parallel = data.draw(st.sampled_from([1, 2, 8]))
    streams = most_streams(model, device, context=context, tensor_parallel=parallel, rows=rows)

    def fits(count: int) -> bool:
        budget = attention_memory(
            model, device, streams=count, context=context, tensor_parallel=parallel, rows=max(rows, count)
        )
        return budget.fits

    assert not streams or fits(streams)
    assert not fits(streams + 1)


def test_a_latent_cache_is_whole_on_every_device_and_heads_are_divided() -> None:
    latent, heads = named("DeepSeek-V2"), named("Qwen3-30B-A3B")
    assert kv_bytes_per_stream(latent, 100, 8) == kv_bytes_per_stream(latent, 100)
    assert kv_bytes_per_stream(heads, 100, 4) == kv_bytes_per_stream(heads, 100) / 4
    # Four KV heads are not split further.
    assert kv_bytes_per_stream(heads, 100, 8) == kv_bytes_per_stream(heads, 100, 4)
