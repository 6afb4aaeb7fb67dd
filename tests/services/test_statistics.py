"""The controller's memory of the routing: taken in, saved, brought back after a restart, thinned when there is much."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from janus.core.trace import Trace
from janus.errors import TraceError
from janus.messages.control import RoutingSample
from janus_placement_controller import statistics as module
from janus_placement_controller.statistics import RoutedModel, Statistics
from tests.waiting import eventually

MODEL = RoutedModel(fingerprint="feed" * 16, num_layers=2, num_experts=8, top_k=2)
LIMIT_S = 10.0


class Clock:
    """Seconds since 1970 that a test sets."""

    def __init__(self) -> None:
        self.now = 1.7e9

    def __call__(self) -> float:
        return self.now


def sample(expert: int = 0, tokens: int = 4, *, model: RoutedModel = MODEL) -> RoutingSample:
    ids = np.empty((model.num_layers, tokens, model.top_k), dtype="<u2")
    ids[:] = (np.arange(model.top_k) + expert) % model.num_experts
    return RoutingSample(
        layers=model.num_layers, tokens=tokens, top_k=model.top_k, expert_ids=ids.tobytes(), seen=tokens
    )


class Made(Statistics):
    """Statistics with a registry of their own."""

    def __init__(self, path: Path | None = None, clock: Clock | None = None, **settings: Any) -> None:
        self.registry = CollectorRegistry()
        super().__init__(MODEL, self.registry, state_dir=str(path or ""), clock=clock or Clock(), **settings)

    def metric(self, name: str) -> float | None:
        self.refresh()
        return self.registry.get_sample_value(name)


def file_of(path: Path) -> Path:
    return path / f"activations-{MODEL.fingerprint[:16]}.safetensors"


def test_samples_are_counted_and_shown() -> None:
    clock = Clock()
    statistics = Made(clock=clock)
    assert statistics.activity() is None
    assert statistics.status()["age_s"] is None
    statistics.on_sample("attention-0", sample(1, 4))
    statistics.on_sample("attention-1", sample(5, 2))
    clock.now += 3
    activity = statistics.activity()
    assert activity is not None
    assert activity.counts[0].tolist() == [0, 4, 4, 0, 0, 2, 2, 0]
    shown = statistics.status()
    assert (shown["window_tokens"], shown["sampled_tokens"], shown["age_s"]) == (6, 6, 3.0)
    assert statistics.metric("janus_routing_sampled_tokens_total") == 6
    assert statistics.metric("janus_routing_window_tokens") == 6
    assert statistics.metric("janus_routing_window_age_seconds") == 3


def test_malformed_samples_are_refused_and_counted() -> None:
    statistics = Made()
    other = RoutedModel(fingerprint="", num_layers=3, num_experts=8, top_k=2)
    statistics.on_sample("attention-0", sample(model=other))
    assert statistics.activity() is None
    assert statistics.metric("janus_routing_samples_refused_total") == 1
    assert statistics.metric("janus_routing_sampled_tokens_total") == 0


def test_many_instances_do_not_make_the_window_short() -> None:
    """100 instances send 10 tokens per second each: a window of 600 must reach back further than 0.6 s."""
    clock = Clock()
    statistics = Made(clock=clock, tokens=600)
    for second in range(120):
        clock.now += 1
        for _ in range(100):
            statistics.on_sample("attention-0", sample(0 if second < 80 else 4, 10))
    activity = statistics.activity()
    assert activity is not None
    # The last 40 of about 60 seconds are of the second kind.
    assert 0.5 < activity.counts[0, 4] / activity.counts[0].sum() * MODEL.top_k < 0.8
    share = statistics.status()["share"]
    assert isinstance(share, float)
    assert share == pytest.approx(600 / 60 / 1000, rel=0.1)


def test_a_short_horizon_forgets_sooner() -> None:
    clock = Clock()
    statistics = Made(clock=clock, tokens=600, horizon_s=15.0)
    for second in range(100):
        clock.now += 1
        for _ in range(100):
            statistics.on_sample("attention-0", sample(0 if second < 80 else 4, 10))
    activity = statistics.activity()
    assert activity is not None
    # All of the last 15 seconds are of the second kind.
    assert activity.counts[0, 4] * MODEL.top_k == activity.counts[0].sum()


async def test_what_was_sampled_survives_a_restart(tmp_path: Path) -> None:
    clock, state = Clock(), tmp_path / "state"
    first = Made(state, clock)
    first.restore()  # nothing is there yet
    async with first.kept():
        first.on_sample("attention-0", sample(1))
    assert file_of(state).stat().st_mode & 0o077 == 0
    assert [path.name for path in state.iterdir()] == [file_of(state).name]
    clock.now += 100
    second = Made(state, clock)
    second.restore()
    before, after = first.activity(), second.activity()
    assert before is not None and after is not None
    np.testing.assert_array_equal(before.counts, after.counts)
    np.testing.assert_array_equal(before.trace, after.trace)
    assert second.status()["age_s"] == 100.0


async def test_it_is_saved_while_the_controller_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is killed loses what came after the last save alone."""
    monkeypatch.setattr(module, "_SAVE_EVERY_S", 0.01)
    statistics = Made(tmp_path)
    async with statistics.kept(), asyncio.timeout(LIMIT_S):
        statistics.on_sample("attention-0", sample(1))
        await eventually(lambda: file_of(tmp_path).exists())
        statistics.on_sample("attention-0", sample(2))
        await eventually(lambda: Trace.from_bytes(file_of(tmp_path).read_bytes()).tokens == 8)


def save(path: Path, fingerprint: str, *, saved_at: float) -> None:
    ids = np.zeros((2, 3, 2), dtype=np.uint16)
    ids[..., 1] = 1
    trace = Trace(fingerprint=fingerprint, num_experts=8, expert_ids=ids, weights=np.ones(3), saved_at=saved_at)
    file_of(path).write_bytes(trace.to_bytes())


def test_an_old_file_is_left_out(tmp_path: Path) -> None:
    clock = Clock()
    save(tmp_path, MODEL.fingerprint, saved_at=clock.now - 61)
    for limit_s, tokens in ((60.0, 0), (120.0, 3), (0.0, 3)):
        statistics = Made(tmp_path, clock, max_age_s=limit_s)
        statistics.restore()
        assert statistics.status()["window_tokens"] == tokens


def test_a_file_of_another_model_or_a_damaged_one_is_left_out(tmp_path: Path) -> None:
    save(tmp_path, "another", saved_at=1.7e9)
    statistics = Made(tmp_path)
    statistics.restore()
    assert statistics.activity() is None
    file_of(tmp_path).write_bytes(file_of(tmp_path).read_bytes()[:-1])
    statistics.restore()
    assert statistics.activity() is None


async def test_a_directory_that_cannot_be_written_costs_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    statistics = Made(tmp_path / "file" / "state")
    async with statistics.kept():
        statistics.on_sample("attention-0", sample(1))
    assert statistics.activity() is not None


def test_a_trace_of_another_model_is_not_loaded() -> None:
    statistics = Made()
    other = Trace(
        fingerprint="another",
        num_experts=8,
        expert_ids=np.zeros((2, 0, 2), dtype=np.uint16),
        weights=np.zeros(0),
        saved_at=0.0,
    )
    with pytest.raises(TraceError, match="another model with the same shape"):
        statistics.load(other)
