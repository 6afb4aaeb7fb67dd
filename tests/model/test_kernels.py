"""The CPU kernels beside torch, their independence of the batch, and what happens without a compiler."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from janus.errors import ConfigError
from janus.model.batch import StepBatch
from janus.model.kernels import build
from janus.model.kernels.library import configure_threads, default_threads, load_library
from janus.model.kv_cache import PagedKVCache
from janus.model.memory import Arena, huge_bytes
from janus.model.random_model import random_config, write_random_model
from tests.model.engine import Engine

TOKENS = torch.randint(0, 320, (200,), generator=torch.Generator().manual_seed(9)).tolist()


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Engine]:
    config = random_config(head_dim=64, hidden_size=256, num_layers=2, num_experts=16, top_k=4, dtype=torch.bfloat16)
    path = write_random_model(tmp_path_factory.mktemp("kernels"), config, std=0.1)
    return {
        "kernels": Engine(path, torch.bfloat16, num_blocks=128),
        "torch": Engine(path, torch.bfloat16, kernels=False, num_blocks=128),
    }


def prefill(engine: Engine, tokens: list[int], chunks: list[int]) -> torch.Tensor:
    """Logits of all tokens, computed in the given chunk lengths (the last one repeats)."""
    seq, parts, turn = engine.sequence(tokens), [], 0
    while seq.computed < len(tokens):
        size = min(chunks[min(turn, len(chunks) - 1)], len(tokens) - seq.computed)
        parts += engine.step([(seq, size)])
        turn += 1
    engine.release(seq)
    return torch.cat(parts)


def test_bf16_kernels_agree_with_torch(engines: dict[str, Engine]) -> None:
    ours, theirs = (prefill(engines[name], TOKENS[:90], [90]) for name in ("kernels", "torch"))
    assert (ours - theirs).abs().mean() < 0.02 * theirs.std()


sizes = st.lists(st.integers(1, 70), min_size=1, max_size=8)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(length=st.integers(1, 140), chunks=sizes, again=sizes, beside=sizes)
def test_bits_do_not_depend_on_chunks_or_company(
    engines: dict[str, Engine], length: int, chunks: list[int], again: list[int], beside: list[int]
) -> None:
    """Prefill in any chunks, beside any other sequence: the same bf16 logits, bit for bit."""
    engine = engines["kernels"]
    whole = prefill(engine, TOKENS[:length], [length])
    assert torch.equal(prefill(engine, TOKENS[:length], chunks), whole)

    seq, other = engine.sequence(TOKENS[:length]), engine.sequence(TOKENS[::-1], capacity=400)
    parts = []
    for turn in range(length):
        if seq.computed == length:
            break
        own = min(again[turn % len(again)], length - seq.computed)
        others = min(beside[turn % len(beside)], len(other.tokens) - other.computed)
        group = [(other, others), (seq, own)] if others else [(seq, own)]
        parts.append(engine.step(group)[-1])
    engine.release(seq)
    engine.release(other)
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_bits_do_not_depend_on_threads(engines: dict[str, Engine], threads: int) -> None:
    loaded = load_library()
    assert loaded is not None
    before = loaded.threads()
    whole = prefill(engines["kernels"], TOKENS, [64])
    try:
        configure_threads(threads, spin_us=0)
        assert loaded.threads() == threads
        assert torch.equal(prefill(engines["kernels"], TOKENS, [64]), whole)
    finally:
        configure_threads(before)


def test_a_finished_context_hides_stale_and_foreign_slots(engines: dict[str, Engine]) -> None:
    """A block that another sequence used before, and rows past the context, are never seen."""
    for engine in engines.values():
        first = prefill(engine, TOKENS[:50], [50])
        for layer in range(engine.config.num_layers):
            engine.kv.keys[layer].fill_(1e3)
            engine.kv.values[layer].fill_(-1e3)
        assert torch.equal(prefill(engine, TOKENS[:50], [50]), first)


def test_routes_the_same_experts_as_torch(engines: dict[str, Engine]) -> None:
    x = torch.randn(300, 256, generator=torch.Generator().manual_seed(2)).bfloat16()
    (weights, ids), (torch_weights, torch_ids) = (engines[name].model.route(1, x) for name in ("kernels", "torch"))
    assert ids.dtype == torch_ids.dtype == torch.int32
    assert torch.equal(ids, torch_ids)
    torch.testing.assert_close(weights, torch_weights, atol=1e-5, rtol=1e-4)


def test_without_a_compiler_torch_computes(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    random_model: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    load_library.cache_clear()
    try:
        assert load_library() is None
        engine = Engine(random_model(), num_blocks=64)
        assert not engine.model.uses_kernels
        assert len(engine.greedy([TOKENS[:5]], 3, 2)[0]) == 3
    finally:
        load_library.cache_clear()
    captured = capsys.readouterr()
    assert "no C++ compiler" in captured.out + captured.err


def test_a_broken_compiler_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler = tmp_path / "c++"
    compiler.write_text('#!/bin/sh\n[ "$1" = --version ] && exit 0\necho "no such flag: -march=native"\nexit 1\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(build.KernelBuildError, match="no such flag"):
        build.build()
    assert not list((tmp_path / "cache").rglob("*.so"))


def test_an_unusable_cache_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file, not a directory")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(build.KernelBuildError, match="set XDG_CACHE_HOME"):
        build.build()


def test_kernels_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JANUS_CPU_KERNELS", "off")
    load_library.cache_clear()
    try:
        assert load_library() is None
    finally:
        load_library.cache_clear()


def test_a_word_that_says_neither_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JANUS_CPU_KERNELS", "of")
    load_library.cache_clear()
    try:
        with pytest.raises(ConfigError, match=r"JANUS_CPU_KERNELS.*'of' is neither on nor off.*use on or off"):
            load_library()
    finally:
        load_library.cache_clear()


def test_default_threads_follow_omp_num_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3,2")
    assert default_threads() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    assert default_threads() == len(os.sched_getaffinity(0))


def test_callers_on_several_threads_take_turns(engines: dict[str, Engine]) -> None:
    """The pool serves one call at a time; calls from other threads wait and get their own results."""
    bank, hidden = engines["kernels"].bank, engines["kernels"].config.hidden_size
    generator = torch.Generator().manual_seed(4)
    inputs = [
        (
            torch.randn(rows, hidden, generator=generator).bfloat16(),
            torch.randint(0, 16, (rows, 4), generator=generator, dtype=torch.int32),
            torch.rand(rows, 4, generator=generator),
        )
        for rows in (1, 5, 40, 17)
    ]
    want = [bank.forward(0, *each) for each in inputs]
    with ThreadPoolExecutor(4) as threads:
        for _ in range(10):
            got = list(threads.map(lambda each: bank.forward(0, *each), inputs))
            assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_a_cache_of_another_dtype_is_refused(engines: dict[str, Engine]) -> None:
    engine = engines["kernels"]
    other = PagedKVCache(engine.config, 4, 16, torch.float32)
    batch = StepBatch(
        token_ids=np.array([1]),
        positions=np.array([0]),
        slot_mapping=np.array([0]),
        query_start=np.array([0, 1]),
        context_len=np.array([1]),
        block_tables=np.array([[0]]),
        sample_rows=np.array([0]),
    )
    with pytest.raises(ValueError, match="KV cache is"):
        engine.model.attention(0, engine.model.embed(batch), batch, other)


def test_memory_is_aligned_zeroed_and_apart() -> None:
    arena = Arena(chunk_bytes=1 << 20)
    pieces = [arena.take(count) for count in (1, 100, 4096, 900_000, 3 << 20, 7)]
    for index, piece in enumerate(pieces):
        assert piece.data_ptr() % 64 == 0
        assert not piece.any()
        piece.fill_(index + 1)
    assert all(bool((piece == index + 1).all()) for index, piece in enumerate(pieces))
    assert huge_bytes(5).data_ptr() % (2 << 20) == 0


def test_cache_size_is_what_it_says() -> None:
    config = random_config()
    cache = PagedKVCache(config, 10, 16, torch.bfloat16)
    assert cache.nbytes == 10 * PagedKVCache.bytes_per_block(config, 16, torch.bfloat16)
    assert len(cache.keys) == len(cache.values) == config.num_layers
    assert cache.keys[0].shape == (10, config.num_kv_heads, 16, config.head_dim)
