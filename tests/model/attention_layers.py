"""One layer of attention on either backend, and the same computed directly: row by row, head by head, in f64."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from janus.model.attention.contract import AttentionLayers, attention_layers
from janus.model.attention.shape import LatentShape
from janus.model.batch import StepBatch
from janus.model.config import ModelConfig
from janus.model.families.base import AttentionSpec, TensorSpec
from janus.model.kernels.library import load_library
from janus.model.kv_cache import PagedKVCache
from janus.model.random_model import random_config
from janus.model.rope import RopeTable
from janus.model.rope_parameters import RopeParameters
from janus.model.weights import AttentionWeights, LatentWeights

HIDDEN, HEADS, GROUPS, SIZE = 48, 4, 2, 16
LATENT = LatentShape(kv_lora_rank=24, q_lora_rank=20, qk_nope_head_dim=12, qk_rope_head_dim=8, v_head_dim=10)


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
