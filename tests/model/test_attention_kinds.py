"""Kinds of attention beside a direct computation: windows, sinks, partial rotation, whole norms, clipping, latents."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from janus.model.attention.contract import AttentionLayers, attention_layers
from janus.model.attention.latent_torch import TorchLatentAttention
from janus.model.attention.shape import LatentShape
from janus.model.attention.softmax import RunningSoftmax, no_sinks, softmax_with_sinks
from janus.model.batch import StepBatch
from janus.model.config import ModelConfig
from janus.model.families.base import AttentionSpec, TensorSpec
from janus.model.kernels.library import load_library
from janus.model.kv_cache import PagedKVCache
from janus.model.random_model import benchmark_config, random_config
from janus.model.rope import RopeTable
from janus.model.rope_parameters import RopeParameters
from janus.model.weights import AttentionWeights, LatentWeights

HIDDEN, HEADS, GROUPS, SIZE = 48, 4, 2, 16
LATENT = LatentShape(kv_lora_rank=24, q_lora_rank=20, qk_nope_head_dim=12, qk_rope_head_dim=8, v_head_dim=10)
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


@dataclass
class Reader:
    """The part of a ``WeightReader`` that attention asks, with random weights of one layer."""

    config: ModelConfig
    dtype: torch.dtype
    norm: str | None = None

    def attention_spec(self, layer: int) -> AttentionSpec:
        norm = None if self.norm is None else TensorSpec("norm", (SIZE if self.norm == "head" else HEADS * SIZE,))
        any_tensor = TensorSpec("any", (1,))
        return AttentionSpec(any_tensor, any_tensor, any_tensor, any_tensor, any_tensor, any_tensor, q_norm=norm)

    def attention(self, layer: int) -> AttentionWeights:
        random = self._random()
        q_norm, k_norm = {"head": (SIZE, SIZE), "whole": (HEADS * SIZE, GROUPS * SIZE), None: (0, 0)}[self.norm]
        return AttentionWeights(
            input_norm=1 + random(HIDDEN),
            post_attention_norm=1 + random(HIDDEN),
            qkv=random((HEADS + 2 * GROUPS) * SIZE, HIDDEN),
            qkv_bias=random((HEADS + 2 * GROUPS) * SIZE),
            q_norm=1 + random(q_norm) if q_norm else None,
            k_norm=1 + random(k_norm) if k_norm else None,
            o=random(HIDDEN, HEADS * SIZE),
            o_bias=random(HIDDEN),
            sinks=5 * random(HEADS) if self.config.attention_sinks else None,
        )

    def latent_attention(self, layer: int) -> LatentWeights:
        random, shape = self._random(), LATENT
        assert shape.q_lora_rank is not None
        return LatentWeights(
            input_norm=1 + random(HIDDEN),
            post_attention_norm=1 + random(HIDDEN),
            a=random(shape.q_lora_rank + shape.width, HIDDEN),
            a_bias=random(shape.q_lora_rank + shape.width),
            q_a_norm=1 + random(shape.q_lora_rank),
            q_b=random(HEADS * shape.qk_head_dim, shape.q_lora_rank),
            kv_a_norm=1 + random(shape.kv_lora_rank),
            k_up=random(HEADS, shape.qk_nope_head_dim, shape.kv_lora_rank),
            v_up=random(HEADS, shape.v_head_dim, shape.kv_lora_rank),
            o=random(HIDDEN, HEADS * shape.v_head_dim),
            o_bias=random(HIDDEN),
        )

    def _random(self):  # type: ignore[no-untyped-def]
        generator = torch.Generator().manual_seed(1)
        return lambda *shape: (torch.randn(shape, generator=generator) * 0.3).to(self.dtype)


def grouped(dtype: torch.dtype = torch.float32, **switches: object) -> Reader:
    config = replace(
        random_config(hidden_size=HIDDEN, num_layers=1, num_heads=HEADS, num_kv_heads=GROUPS, head_dim=SIZE),
        rope=RopeParameters(theta=100.0, partial_rotary_factor=float(str(switches.get("rotary", 1.0)))),
        attention_sinks=bool(switches.get("sinks")),
        sliding_windows=(switches.get("window"),),
        qkv_clip=switches.get("clip"),
    )
    norm = switches.get("norm")
    return Reader(config, dtype, None if norm is None else str(norm))


def latent(dtype: torch.dtype = torch.float32) -> Reader:
    rope = RopeParameters(theta=100.0, type="yarn", factor=4.0, original_max_position=32, mscale_all_dim=1.0)
    config = random_config(hidden_size=HIDDEN, num_layers=1, num_heads=HEADS)
    return Reader(replace(config, latent=LATENT, rope=rope), dtype)


class Layer:
    """One layer on one backend, with sequences that have their own blocks, out of order."""

    def __init__(self, reader: Reader, *, kernels: bool, block_size: int = 8) -> None:
        library = load_library() if kernels else None
        self.layers: AttentionLayers = attention_layers(reader, library)  # type: ignore[arg-type]
        assert type(self.layers).__name__.startswith("Cpu" if kernels else "Torch")
        self.kv = PagedKVCache(reader.config, 256, block_size, reader.dtype)
        self.rope = RopeTable(reader.config.rope, reader.config.rotary_dim, 512, torch.device("cpu"))
        self.order = np.random.default_rng(0).permutation(256)

    def step(self, chunks: list[tuple[int, int, torch.Tensor]]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """(sequence, position of its first row, rows [n, H]) -> the same rows after attention, and normed."""
        size = self.kv.block_size
        tables = self.order.reshape(-1, 32)[[sequence for sequence, _, _ in chunks]]
        positions = [np.arange(start, start + len(rows)) for _, start, rows in chunks]
        slots = [table[where // size] * size + where % size for table, where in zip(tables, positions, strict=True)]
        starts = np.cumsum([0, *(len(rows) for _, _, rows in chunks)])
        batch = StepBatch(
            token_ids=np.zeros(starts[-1]),
            positions=np.concatenate(positions),
            slot_mapping=np.concatenate(slots),
            query_start=starts,
            context_len=np.array([start + len(rows) for _, start, rows in chunks]),
            block_tables=tables,
            sample_rows=np.arange(0),
        )
        with torch.inference_mode():
            self.layers.prepare(batch, self.rope.rows(batch.positions, int(batch.positions_np.max())))
            h, x = self.layers.attention(0, torch.cat([rows for _, _, rows in chunks]), batch, self.kv)
        parts = [len(rows) for _, _, rows in chunks]
        return list(zip(h.split(parts), x.split(parts), strict=True))

    def whole(self, rows: torch.Tensor, chunks: list[int], sequence: int = 0) -> torch.Tensor:
        """All rows of a sequence in chunks of these lengths, the last repeated: [n, 2, H]."""
        done, parts = 0, []
        for turn in range(len(rows)):
            if done < len(rows):
                part = rows[done : done + chunks[min(turn, len(chunks) - 1)]]
                parts.append(torch.stack(self.step([(sequence, done, part)])[0], dim=1))
                done += len(part)
        return torch.cat(parts)


def activations(count: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, HIDDEN, generator=torch.Generator().manual_seed(seed)).to(dtype)


def norm(x: torch.Tensor, weight: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight.double()


def turned(x: torch.Tensor, cos_sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of [n, heads, size] by complex numbers."""
    rotary = cos_sin.shape[1]
    cos, sin = cos_sin.double().chunk(2, dim=1)
    first, second = x[..., : rotary // 2], x[..., rotary // 2 : rotary]
    pairs = torch.complex(first, second) * torch.complex(cos, sin)[:, None]
    return torch.cat((pairs.real, pairs.imag, x[..., rotary:]), dim=-1)


def attended(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    scale: float,
    window: int | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Row by row and head by head: q [n, N, d], k [n, G, d], v [n, G, e] to [n, N, e]."""
    out = []
    for row in range(len(q)):
        first = 0 if window is None else max(0, row - window + 1)
        for head in range(q.shape[1]):
            group = head * k.shape[1] // q.shape[1]
            raised = (k[first : row + 1, group] @ q[row, head] * scale).exp()
            rest = 0.0 if sinks is None else sinks[head].double().exp()
            out.append((raised / (raised.sum() + rest)) @ v[first : row + 1, group])
    return torch.stack(out).view(len(q), q.shape[1], -1)


def direct_grouped(reader: Reader, rope: RopeTable, rows: torch.Tensor) -> torch.Tensor:
    """[n, 2, H] in f64."""
    config, weights, count, h = reader.config, reader.attention(0), len(rows), rows.double()
    assert weights.qkv_bias is not None
    assert weights.o_bias is not None
    qkv = norm(h, weights.input_norm) @ weights.qkv.double().T + weights.qkv_bias.double()
    q, k, v = qkv.split([HEADS * SIZE, GROUPS * SIZE, GROUPS * SIZE], dim=1)
    if reader.norm == "whole":
        q, k = norm(q, weights.q_norm), norm(k, weights.k_norm)  # type: ignore[arg-type]
    q, k, v = (part.reshape(count, -1, SIZE) for part in (q, k, v))
    if reader.norm == "head":
        q, k = norm(q, weights.q_norm), norm(k, weights.k_norm)  # type: ignore[arg-type]
    if config.qkv_clip:
        q, k, v = (part.clamp(-config.qkv_clip, config.qkv_clip) for part in (q, k, v))
    cos_sin = rope.rows(torch.arange(count), count - 1)
    result = attended(
        turned(q, cos_sin),
        turned(k, cos_sin),
        v,
        scale=SIZE**-0.5,
        window=config.sliding_window(0),
        sinks=weights.sinks,
    )
    out = h + result.flatten(1) @ weights.o.double().T + weights.o_bias.double()
    return torch.stack((out, norm(out, weights.post_attention_norm)), dim=1)


def direct_latent(reader: Reader, rope: RopeTable, rows: torch.Tensor) -> torch.Tensor:
    """[n, 2, H] in f64, by the keys and values of every head."""
    shape, weights, count, h = LATENT, reader.latent_attention(0), len(rows), rows.double()
    assert weights.a_bias is not None
    assert weights.q_a_norm is not None
    assert weights.q_b is not None
    assert weights.o_bias is not None
    a = norm(h, weights.input_norm) @ weights.a.double().T + weights.a_bias.double()
    q_a, latents, k_pe = a.split([shape.q_lora_rank or 0, shape.kv_lora_rank, shape.qk_rope_head_dim], dim=1)
    q = (norm(q_a, weights.q_a_norm) @ weights.q_b.double().T).view(count, HEADS, -1)
    latents = norm(latents, weights.kv_a_norm)
    cos_sin = rope.rows(torch.arange(count), count - 1)
    q_nope, q_pe = q.split([shape.qk_nope_head_dim, shape.qk_rope_head_dim], dim=2)
    q = torch.cat((q_nope, turned(q_pe, cos_sin)), dim=2)
    k_nope = torch.einsum("tr,ndr->tnd", latents, weights.k_up.double())
    k = torch.cat((k_nope, turned(k_pe[:, None], cos_sin).expand(-1, HEADS, -1)), dim=2)
    v = torch.einsum("tr,ndr->tnd", latents, weights.v_up.double())
    result = attended(q, k, v, scale=reader.config.attention_scale)
    out = h + result.flatten(1) @ weights.o.double().T + weights.o_bias.double()
    return torch.stack((out, norm(out, weights.post_attention_norm)), dim=1)


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
