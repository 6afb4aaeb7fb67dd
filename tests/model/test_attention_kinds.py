"""Kinds of attention beside a direct computation: windows, sinks, partial rotation, whole norms, clipping, latents."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from janus.model.attention.latent_torch import TorchLatentAttention
from janus.model.attention.softmax import RunningSoftmax, no_sinks, softmax_with_sinks
from janus.model.kv_cache import PagedKVCache
from janus.model.random_model import benchmark_config
from tests.model.attention_layers import (
    GROUPS,
    HEADS,
    LATENT,
    SIZE,
    Layer,
    Reader,
    activations,
    direct_grouped,
    direct_latent,
    grouped,
    latent,
)

#: Switches of one layer; "norm" is None, "head" or "whole".
GROUPED: dict[str, dict[str, object]] = {
    "plain": {},
    "sinks": {"sinks": True},
    "window_1": {"window": 1},
    "window_sinks": {"window": 9, "sinks": True},
    "window_70_norms": {"window": 70, "norm": "head"},
    "a_quarter_turns": {"rotary": 0.25, "norm": "head"},
    "whole_norms_clipped": {"norm": "whole", "clip": 0.7},
    "clipped_half_turns": {"clip": 0.5, "rotary": 0.5, "sinks": True, "window": 33},
}

both = pytest.mark.parametrize("kernels", [True, False], ids=["kernels", "torch"])
#: One row at a time; in chunks across tiles, blocks and windows; all at once.
CUTS = ([1], [5, 1, 70], [200])


@both
@pytest.mark.parametrize("switches", GROUPED.values(), ids=GROUPED.keys())
def test_grouped_attention_is_what_it_says(switches: dict[str, object], kernels: bool) -> None:
    reader, rows = grouped(**switches), activations(150)
    layer = Layer(reader, kernels=kernels)
    want = direct_grouped(reader, layer.rope, rows)
    for cut in CUTS:
        torch.testing.assert_close(layer.whole(rows, cut).double(), want, atol=2e-5, rtol=0)


@both
def test_latent_attention_is_what_it_says(kernels: bool) -> None:
    reader, rows = latent(), activations(150)
    layer = Layer(reader, kernels=kernels)
    want = direct_latent(reader, layer.rope, rows)
    for cut in CUTS:
        torch.testing.assert_close(layer.whole(rows, cut).double(), want, atol=2e-5, rtol=0)


@both
@pytest.mark.parametrize("reader", [grouped(window=20, sinks=True), latent()], ids=["grouped", "latent"])
def test_a_step_mixes_sequences(reader: Reader, kernels: bool) -> None:
    """Prompts and single rows of sequences at different places give what each gives alone."""
    layer = Layer(reader, kernels=kernels)
    rows = [activations(60, seed=seed) for seed in range(3)]
    alone = [layer.whole(each, [60]) for each in rows]
    done = [0, 0, 0]
    for lengths in ((30, 1, 7), (1, 1, 1), (0, 57, 1), (29, 1, 51)):
        chunks = [(s, done[s], rows[s][done[s] : done[s] + count]) for s, count in enumerate(lengths) if count]
        for (sequence, start, chunk), got in zip(chunks, layer.step(chunks), strict=True):
            want = alone[sequence][start : start + len(chunk)]
            torch.testing.assert_close(torch.stack(got, dim=1), want, atol=1e-5, rtol=0)
            done[sequence] += len(chunk)
    assert done == [60, 60, 60]


sizes = st.lists(st.integers(1, 70), min_size=1, max_size=6)


@pytest.fixture(scope="module")
def bf16_layers() -> list[Layer]:
    half = torch.bfloat16
    return [Layer(latent(half), kernels=True), Layer(grouped(half, window=37, sinks=True, rotary=0.5), kernels=True)]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(count=st.integers(1, 150), cut=sizes)
def test_bits_do_not_depend_on_how_a_prompt_is_cut(bf16_layers: list[Layer], count: int, cut: list[int]) -> None:
    for layer in bf16_layers:
        rows = activations(count, torch.bfloat16)
        assert torch.equal(layer.whole(rows, cut, sequence=1), layer.whole(rows, [count]))


@pytest.mark.parametrize("kind", ["grouped", "latent"])
def test_bf16_kernels_are_as_near_as_torch(kind: str) -> None:
    """To what f32 gives on the same bf16 weights and activations."""
    make, rows = {"grouped": grouped, "latent": latent}[kind], activations(120, torch.bfloat16)
    exact = make(torch.bfloat16)
    layers = [Layer(exact, kernels=kernels) for kernels in (True, False)]
    want = {"grouped": direct_grouped, "latent": direct_latent}[kind](exact, layers[0].rope, rows)
    ours, theirs = (float((layer.whole(rows, [50, 1, 7]).double() - want).abs().mean()) for layer in layers)
    assert ours <= 1.1 * theirs < 0.1


def test_expanded_and_absorbed_prompts_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = activations(100)
    layer = Layer(latent(), kernels=False)
    results = []
    for expand in (True, False):
        monkeypatch.setattr(TorchLatentAttention, "_expands", lambda _self, _rows, expand=expand: expand)
        results.append(layer.whole(rows, [40, 60]))
    torch.testing.assert_close(results[0], results[1], atol=1e-5, rtol=0)


class Largest(TorchDispatchMode):
    """Notes the size of the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        outputs: Iterator[object] = iter(result if isinstance(result, tuple | list) else (result,))
        for output in outputs:
            # Views of the cache are no new memory.
            if isinstance(output, torch.Tensor) and output._base is None:
                self.elements = max(self.elements, output.numel())
        return result


def test_a_latent_decode_step_makes_no_key_of_a_head() -> None:
    """Nothing that a step makes is larger than the latents of the context themselves."""
    layer, context = Layer(latent(), kernels=False), 240
    layer.whole(activations(context), [context])
    with Largest() as made:
        layer.step([(0, context, activations(1))])
    assert made.elements <= (context + layer.kv.block_size) * LATENT.width
    assert (context + layer.kv.block_size) * LATENT.width < context * HEADS * LATENT.qk_nope_head_dim


def test_a_token_takes_what_its_layout_says() -> None:
    grouped_config, latent_config = grouped().config, latent().config
    assert grouped_config.kv_layout.elements_per_token == 2 * GROUPS * SIZE
    assert latent_config.kv_layout.elements_per_token == LATENT.kv_lora_rank + LATENT.qk_rope_head_dim
    for config in (grouped_config, latent_config, benchmark_config()):
        cache = PagedKVCache(config, 10, 16, torch.bfloat16)
        assert cache.nbytes == 160 * PagedKVCache.bytes_per_token(config, torch.bfloat16)
        assert cache.nbytes == 10 * PagedKVCache.bytes_per_block(config, 16, torch.bfloat16)
        held = [*cache.keys, *cache.values, *cache.latents]
        assert sum(part.nbytes for part in held) == cache.nbytes
        assert len({part.data_ptr() for part in held}) == len(held)


def test_sinks_take_part_and_carry_nothing() -> None:
    scores, sinks = torch.tensor([[0.0, 1.0, -torch.inf]]), torch.tensor([[2.0]])
    want = torch.tensor([[1.0, torch.e, 0.0]]) / (1 + torch.e + torch.e**2)
    torch.testing.assert_close(softmax_with_sinks(scores, sinks), want)


def test_a_running_softmax_may_see_nothing_at_first() -> None:
    total = RunningSoftmax(no_sinks(2, device=torch.device("cpu")), 3)
    total.add(torch.full((2, 4), -torch.inf), torch.randn(4, 3))
    values = torch.randn(4, 3)
    scores = torch.randn(2, 4)
    total.add(scores, values)
    torch.testing.assert_close(total.result(), torch.softmax(scores, -1) @ values)
