"""What the sampler promises: order of operations, distributions, and draws that depend on seed and position alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from janus.core.request import SamplingView
from janus.messages.control import SamplingParams
from janus.model import sampler
from janus.model.sampler import sample, uniforms


def view(
    prompt: tuple[int, ...] = (), output: tuple[int, ...] = (), stop: frozenset[int] = frozenset(), **params: Any
) -> SamplingView:
    return SamplingView("request", SamplingParams(**({"seed": 0} | params)), list(prompt), list(output), stop)


def logits(rows: int, vocab: int = 100, seed: int = 0, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * scale


def draws(line: torch.Tensor, count: int, **params: Any) -> torch.Tensor:
    """Many draws from one distribution, a seed each."""
    views = [view(**(params | {"seed": seed})) for seed in range(count)]
    ids, _ = sample(line.expand(count, -1), views)
    return torch.tensor(ids)


def allowed(line: torch.Tensor, prompt: tuple[int, ...] = (), **params: Any) -> torch.Tensor:
    """The distribution that transformers' processors leave."""
    processors = LogitsProcessorList()
    if params.get("repetition_penalty", 1.0) != 1.0:
        processors.append(RepetitionPenaltyLogitsProcessor(params["repetition_penalty"]))
    processors.append(TemperatureLogitsWarper(params["temperature"]))
    if params.get("top_k"):
        processors.append(TopKLogitsWarper(params["top_k"]))
    if params.get("top_p", 1.0) < 1:
        processors.append(TopPLogitsWarper(params["top_p"]))
    if params.get("min_p"):
        processors.append(MinPLogitsWarper(params["min_p"]))
    scores = processors(torch.tensor([list(prompt)], dtype=torch.int64), line[None].clone())
    return torch.softmax(scores.double(), dim=-1)[0]


PARAMS = [
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 5},
    {"temperature": 1.3, "top_p": 0.8},
    {"temperature": 0.9, "min_p": 0.05},
    {"temperature": 1.1, "top_k": 20, "top_p": 0.9, "min_p": 0.02},
    {"temperature": 2.0, "top_k": 1},
]


@pytest.mark.parametrize("params", PARAMS, ids=str)
def test_frequencies_follow_the_distribution_of_transformers(params: dict[str, Any]) -> None:
    line, count = logits(1, seed=1)[0], 4000
    want = allowed(line, **params)
    picked = draws(line, count, **params)
    assert set(picked.tolist()) <= set(torch.nonzero(want > 0)[:, 0].tolist())
    frequency = torch.bincount(picked, minlength=len(line)) / count
    assert (frequency - want).abs().max() < 4 * (0.25 / count) ** 0.5


def test_wide_nucleus_beyond_the_candidates() -> None:
    """top_p close to 1 over a flat distribution needs more candidates than the first ranking takes."""
    line = logits(1, vocab=3000, scale=0.1)[0]
    picked = draws(line, 3000, temperature=1.0, top_p=0.95)
    want = allowed(line, temperature=1.0, top_p=0.95)
    assert set(picked.tolist()) <= set(torch.nonzero(want > 0)[:, 0].tolist())
    assert len(set(picked.tolist())) > 1500


def test_greedy_takes_the_first_of_the_largest() -> None:
    line = torch.tensor([[0.0, 2.0, 1.0, 2.0]])
    assert sample(line, [view(temperature=0.0)])[0] == [1]


@given(seed=st.integers(-(2**63), 2**63 - 1), position=st.integers(0, 10**6))
def test_uniforms_are_pure_and_in_range(seed: int, position: int) -> None:
    (first,), (second,) = uniforms([seed], [position]), uniforms([1, seed], [5, position])[1:]
    assert first == second
    assert 0 <= first < 1


def test_philox_is_the_published_one() -> None:
    """Known answers of Random123 (kat_vectors: philox4x32 10): words 0 and 1 make the 53 bits."""
    (zero,) = uniforms([0], [0])
    assert zero == (((0x6627E8D5 << 32) | 0xE169C58D) >> 11) * 2.0**-53


def test_uniforms_are_uniform_and_uncorrelated() -> None:
    u = uniforms([7] * 20_000, range(20_000))
    assert abs(u.mean() - 0.5) < 0.01
    assert abs(np.histogram(u, bins=20, range=(0, 1))[0] - 1000).max() < 150
    assert abs(np.corrcoef(u[1:], u[:-1])[0, 1]) < 0.03
    assert abs(np.corrcoef(u, uniforms([8] * 20_000, range(20_000)))[0, 1]) < 0.03


row_params = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 0.5, 1.0, 3.0]),
        "top_k": st.sampled_from([0, 1, 7]),
        "top_p": st.sampled_from([1.0, 0.9, 0.2]),
        "min_p": st.sampled_from([0.0, 0.1]),
        "repetition_penalty": st.sampled_from([1.0, 1.3]),
        "presence_penalty": st.sampled_from([0.0, 0.8]),
        "frequency_penalty": st.sampled_from([0.0, -0.4]),
        "seed": st.integers(0, 5),
        "min_tokens": st.sampled_from([0, 9]),
    }
)


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(row_params, min_size=1, max_size=8), position=st.integers(0, 12))
def test_a_row_does_not_depend_on_its_neighbours(rows: list[dict[str, Any]], position: int) -> None:
    """Alone or in a batch of requests with quite other parameters, a row draws the same token."""
    batch = logits(len(rows), seed=3)
    views = [view((1, 2, 3), tuple(range(position)), frozenset({int(batch[0].argmax())}), **params) for params in rows]
    before = batch.clone()
    together, _ = sample(batch, views)
    assert torch.equal(batch, before)
    assert together == [sample(batch[i : i + 1], views[i : i + 1])[0][0] for i in range(len(rows))]


def ranked(**params: Any) -> dict[str, Any]:
    return {"temperature": 0.5, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 0} | params


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(row_params, min_size=1, max_size=6), seed=st.integers(0, 99), vocab=st.sampled_from([5, 100, 2000])
)
# top_p is a share of what top_k leaves, also of what top_p or min_p then drops.
@example(rows=[ranked(), ranked(), ranked(top_k=7, top_p=0.9)], seed=0, vocab=100)
@example(rows=[ranked(top_k=50, top_p=0.9, min_p=0.1, seed=each) for each in range(6)], seed=1, vocab=100)
def test_kernels_choose_what_torch_chooses(rows: list[dict[str, Any]], seed: int, vocab: int) -> None:
    batch = logits(len(rows), vocab, seed)
    views = [view((1, 2), (3,), frozenset({4}), **params) for params in rows]
    ours, _ = sample(batch, views)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler, "load_library", lambda: None)
        theirs, _ = sample(batch, views)
    assert ours == theirs


def test_a_neighbours_top_k_does_not_narrow_a_row_without_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler, "load_library", lambda: None)
    batch = logits(6, vocab=2000)[4:]
    narrow, wide = view((1,), temperature=0.5, top_k=1), view((1, 2), (3,), temperature=1.0, top_p=0.9)
    alone, _ = sample(batch[1:], [wide])
    assert sample(batch, [narrow, wide])[0][1:] == alone


def test_a_resumed_request_draws_on() -> None:
    lines = logits(20, seed=4)
    params = {"temperature": 1.0, "seed": 11}
    output: list[int] = []
    for line in lines:
        output += sample(line[None], [view(output=tuple(output), **params)])[0]
    resumed = output[:10]
    for line in lines[10:]:
        resumed += sample(line[None], [view(prompt=(5, 6), output=tuple(resumed), **params)])[0]
    assert resumed == output
    other = [
        sample(line[None], [view(output=(0,) * i, **(params | {"seed": 12}))])[0][0] for i, line in enumerate(lines)
    ]
    assert other != output


def test_repetition_penalty_covers_prompt_and_output_as_in_transformers() -> None:
    line = logits(1, seed=5)[0]
    prompt, output = (3, 3, 8), (11, 8)
    want = allowed(line, (*prompt, *output), temperature=1.0, repetition_penalty=1.5)
    views = [
        view(prompt, output, temperature=1.0, repetition_penalty=1.5, seed=seed, top_k=100) for seed in range(4000)
    ]
    ids, _ = sample(line.expand(4000, -1), views)
    frequency = torch.bincount(torch.tensor(ids), minlength=100) / 4000
    assert (frequency - want).abs().max() < 4 * (0.25 / 4000) ** 0.5


def test_presence_and_frequency_penalties_count_output_only() -> None:
    """OpenAI: logit - presence - frequency * count, over the generated tokens."""
    line = torch.tensor([[5.0, 4.9, 4.8, 0.0]])
    greedy = {"temperature": 0.0}
    assert sample(line, [view((0, 0), (), presence_penalty=2.0, **greedy)])[0] == [0]
    assert sample(line, [view((), (0,), presence_penalty=0.15, **greedy)])[0] == [1]
    assert sample(line, [view((), (0, 1, 1, 0), frequency_penalty=0.06, **greedy)])[0] == [0]
    assert sample(line, [view((), (0, 0, 1), frequency_penalty=0.2, **greedy)])[0] == [2]
    assert sample(line, [view((), (3,) * 60, frequency_penalty=-0.1, **greedy)])[0] == [3]


def test_min_tokens_holds_back_the_stop_tokens() -> None:
    line = torch.tensor([[9.0, 5.0, 1.0]])
    stop = frozenset({0})
    for temperature in (0.0, 1.0):
        assert sample(line, [view((), (2,), stop, min_tokens=2, temperature=temperature, top_k=1)])[0] == [1]
        assert sample(line, [view((), (2, 2), stop, min_tokens=2, temperature=temperature, top_k=1)])[0] == [0]


def test_logprobs_are_of_the_unmodified_distribution() -> None:
    line = logits(2, seed=6)
    top = int(line[1].argmax())
    ids, logprobs = sample(
        line,
        [
            view(temperature=0.0),
            view((), (top,), temperature=0.3, top_k=2, presence_penalty=2.0, repetition_penalty=9.0, logprobs=3),
        ],
    )
    assert logprobs[0] is None
    want = torch.log_softmax(line[1], dim=-1)
    assert logprobs[1] is not None
    assert logprobs[1].logprob == pytest.approx(float(want[ids[1]]), abs=1e-5)
    assert logprobs[1].top_ids == torch.topk(want, 3).indices.tolist()
    assert logprobs[1].top_logprobs == pytest.approx(torch.topk(want, 3).values.tolist(), abs=1e-5)
    (none,) = sample(line[:1], [view(temperature=0.0, logprobs=0)])[1]
    assert none is not None
    assert (none.top_ids, none.top_logprobs) == ([], [])


@pytest.mark.parametrize("temperature", [1e-6, 100.0])
def test_extreme_temperatures_stay_finite(temperature: float) -> None:
    line = logits(1, seed=7, scale=50.0)
    ids = draws(line[0], 50, temperature=temperature)
    assert ((ids >= 0) & (ids < 100)).all()
    if temperature < 1:
        assert (ids == line[0].argmax()).all()
