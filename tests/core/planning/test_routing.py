"""Synthetic routing: shape, distinctness, the popularity asked for, topics."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus.core.planning.routing import synthetic_routing
from janus.core.trace import problem_of
from janus.errors import ConfigError


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_every_routing_is_a_valid_trace_and_repeatable(data: st.DataObject) -> None:
    experts = data.draw(st.integers(1, 40))
    top_k = data.draw(st.integers(1, experts))
    arguments: dict[str, Any] = {
        "layers": data.draw(st.integers(1, 3)),
        "popularity": data.draw(st.floats(0, 3)),
        "clusters": data.draw(st.integers(1, 4)),
        "affinity": data.draw(st.floats(0, 4)),
        "unused": data.draw(st.floats(0, (experts - top_k) / experts)),
        "seed": data.draw(st.integers(0, 99)),
    }
    tokens = data.draw(st.integers(0, 30))
    ids = synthetic_routing(experts, top_k, tokens, **arguments)
    assert ids.shape == (arguments["layers"], tokens, top_k)
    assert problem_of(ids, np.ones(tokens), experts) == ""
    assert np.array_equal(ids, synthetic_routing(experts, top_k, tokens, **arguments))


def test_with_one_choice_the_popularity_is_that_of_zipf() -> None:
    ids = synthetic_routing(8, 1, 40_000, popularity=1.0, seed=3)
    found = np.sort(np.bincount(ids.ravel(), minlength=8) / ids.size)[::-1]
    wanted = 1 / np.arange(1, 9)
    assert np.allclose(found, wanted / wanted.sum(), atol=0.01)


def test_a_popularity_can_be_given_rank_by_rank() -> None:
    ids = synthetic_routing(4, 1, 20_000, popularity=(4, 2, 1, 1), seed=1)
    assert np.allclose(np.sort(np.bincount(ids.ravel()))[::-1] / ids.size, [0.5, 0.25, 0.125, 0.125], atol=0.015)


def test_unused_experts_are_never_chosen() -> None:
    ids = synthetic_routing(160, 6, 5_000, layers=2, unused=0.25)
    assert [len(np.unique(layer)) for layer in ids] == [120, 120]


def test_topics_make_experts_that_are_chosen_together() -> None:
    def most_together(clusters: int, affinity: float) -> float:
        """The most frequent pair of experts over what independent choices of them would give."""
        ids = synthetic_routing(16, 2, 20_000, clusters=clusters, affinity=affinity, seed=5)[0]
        chosen = np.zeros((len(ids), 16))
        np.put_along_axis(chosen, ids.astype(np.int64), 1, axis=1)
        share = chosen.mean(axis=0)
        together = chosen.T @ chosen / len(ids) / np.outer(share, share)
        np.fill_diagonal(together, 0)
        return float(together[np.ix_(share > 0.02, share > 0.02)].max())

    assert most_together(1, 0.0) < 1.3
    assert most_together(8, 3.0) > 2.5


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"experts": 0}, "experts"),
        ({"experts": 70_000}, "experts"),
        ({"tokens": -1}, "tokens"),
        ({"layers": 0}, "layers"),
        ({"clusters": 0}, "clusters"),
        ({"unused": 1.0}, "unused"),
        ({"unused": 0.9}, "top_k"),
        ({"affinity": float("nan")}, "affinity"),
        ({"popularity": -1.0}, "popularity"),
        ({"popularity": (1.0, 2.0)}, "popularity"),
        ({"top_k": 9}, "top_k"),
    ],
)
def test_a_wrong_argument_is_named(arguments: dict[str, Any], field: str) -> None:
    right: dict[str, Any] = {"experts": 8, "top_k": 2, "tokens": 5}
    with pytest.raises(ConfigError) as caught:
        synthetic_routing(**(right | arguments))
    assert caught.value.field == field
