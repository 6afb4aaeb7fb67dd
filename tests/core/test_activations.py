"""The window of sampled routing: it equals a recount from scratch, is bounded, forgets, and refuses what is wrong."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus.core.activations import ActivationWindow
from janus.errors import TraceError
from janus.messages.control import RoutingSample

LAYERS, EXPERTS, TOP_K = 3, 7, 2
#: One token: its experts in each layer.
Token = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Message:
    """A sample, and what it was made of."""

    tokens: list[Token]
    seen: int

    @property
    def sample(self) -> RoutingSample:
        ids = np.array(self.tokens, dtype="<u2").reshape(len(self.tokens), LAYERS, TOP_K)
        return RoutingSample(
            layers=LAYERS,
            tokens=len(self.tokens),
            top_k=TOP_K,
            expert_ids=ids.transpose(1, 0, 2).tobytes(),
            seen=self.seen,
        )


experts = st.lists(st.integers(0, EXPERTS - 1), min_size=TOP_K, max_size=TOP_K, unique=True).map(tuple)
token = st.tuples(*[experts] * LAYERS)
messages = st.lists(
    st.builds(
        lambda tokens, unseen: Message(tokens, len(tokens) + unseen),
        st.lists(token, max_size=12),
        st.integers(0, 1000),
    ),
    max_size=12,
)


def window(tokens: int = 16, **settings: object) -> ActivationWindow:
    return ActivationWindow(LAYERS, EXPERTS, TOP_K, tokens=tokens, **settings)  # type: ignore[arg-type]


def tokens_of(expert: int, count: int, *, seen: int | None = None) -> RoutingSample:
    """Tokens that choose ``expert`` and the next one, in every layer."""
    return Message([((expert, (expert + 1) % EXPERTS),) * LAYERS] * count, count if seen is None else seen).sample


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 20), messages)
def test_the_window_is_a_recount_of_the_last_tokens(capacity: int, given: list[Message]) -> None:
    held = window(capacity)
    for message in given:
        assert held.add(message.sample) == len(message.tokens)
        held.activity()  # what was derived before must not show later
    last = [(token, message.seen / len(message.tokens)) for message in given for token in message.tokens][-capacity:]
    assert len(held) == len(last) <= capacity
    activity = held.activity()
    if not last:
        assert activity is None
        return
    counts, together = np.zeros((LAYERS, EXPERTS)), np.zeros((LAYERS, EXPERTS, EXPERTS))
    for token, weight in last:
        for layer, chosen in enumerate(token):
            counts[layer, list(chosen)] += weight
            for first, second in itertools.permutations(chosen, 2):
                together[layer, first, second] += weight
    assert activity is not None and activity.coactivation is not None and activity.trace is not None
    np.testing.assert_allclose(activity.counts, counts)
    np.testing.assert_allclose(activity.coactivation, together, rtol=1e-6)
    assert [tuple(map(tuple, activity.trace[:, i].tolist())) for i in range(len(last))] == [token for token, _ in last]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 20), messages)
def test_a_trace_brings_a_window_back(capacity: int, given: list[Message]) -> None:
    held, other = window(capacity), window(capacity)
    for message in given:
        held.add(message.sample)
    other.add_trace(held.trace(fingerprint="f", saved_at=1.0))
    left, right = held.activity(), other.activity()
    if left is None or right is None:
        assert left is right is None
        return
    np.testing.assert_array_equal(left.counts, right.counts)
    np.testing.assert_array_equal(left.trace, right.trace)


def test_an_old_domain_ages_out() -> None:
    held = window(64)
    for _ in range(8):
        held.add(tokens_of(0, 8))
    for sent in range(8):
        activity = held.activity()
        assert activity is not None
        assert activity.counts[0, 0] == 64 - 8 * sent
        held.add(tokens_of(4, 8))
    activity = held.activity()
    assert activity is not None
    assert activity.counts[0].tolist() == [0, 0, 0, 0, 64, 64, 0]


def test_a_busy_instance_counts_for_as_much_as_it_routes() -> None:
    held = window(64)
    held.add(tokens_of(0, 8, seen=8000))
    held.add(tokens_of(4, 8, seen=80))
    activity = held.activity()
    assert activity is not None
    assert activity.counts[0, 0] == 100 * activity.counts[0, 4] == 8000


def test_a_share_of_many_samples_estimates_the_same_load() -> None:
    held = window(10_000)
    taken = [held.add(tokens_of(expert, 5, seen=50), share=0.1) for _ in range(200) for expert in (0, 3)]
    assert 150 <= sum(taken) <= 250  # of 2000, a tenth
    assert max(taken) <= 1
    activity = held.activity()
    assert activity is not None
    assert activity.counts[0, 0] == pytest.approx(200 * 50, rel=0.3)
    assert activity.counts[0, 3] == pytest.approx(200 * 50, rel=0.3)


def test_a_prior_gives_way_to_what_is_sampled() -> None:
    prior = np.zeros((LAYERS, EXPERTS))
    prior[:, 6] = 5.0
    prior[2] = 0.0  # nothing is known of this layer: all alike
    held = window(8, prior=prior)
    activity = held.activity()
    assert activity is not None and activity.coactivation is None
    assert activity.counts[0].tolist() == [0, 0, 0, 0, 0, 0, 16]
    assert activity.counts[2].tolist() == pytest.approx([16 / 7] * 7)
    held.add(tokens_of(0, 6, seen=12))
    activity = held.activity()
    assert activity is not None
    assert activity.counts[0].tolist() == [12, 12, 0, 0, 0, 0, 8]  # 2 of 8 tokens are not there yet; each stands for 2
    held.add(tokens_of(0, 6, seen=12))
    activity = held.activity()
    assert activity is not None
    assert activity.counts[0].tolist() == [16, 16, 0, 0, 0, 0, 0]


good = tokens_of(1, 4)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda m: msgspec.structs.replace(m, layers=2), "the model has 3 layers"),
        (lambda m: msgspec.structs.replace(m, top_k=3), "K 2"),
        (lambda m: msgspec.structs.replace(m, tokens=5), "48 bytes are no uint16 [3, 5, 2]"),
        (lambda m: msgspec.structs.replace(m, tokens=-4), "shape"),
        (lambda m: msgspec.structs.replace(m, expert_ids=m.expert_ids[:-1]), "47 bytes"),
        (lambda m: msgspec.structs.replace(m, seen=3), "4 tokens sampled of 3 seen"),
        (lambda m: msgspec.structs.replace(m, expert_ids=b"\x07\x00" + m.expert_ids[2:]), "expert 7"),
        (lambda m: msgspec.structs.replace(m, expert_ids=b"\xff\xff" + m.expert_ids[2:]), "expert 65535"),
        (lambda m: msgspec.structs.replace(m, expert_ids=b"\x02\x00" + m.expert_ids[2:]), "same expert twice"),
    ],
)
def test_a_malformed_sample_is_refused_and_changes_nothing(
    change: Callable[[RoutingSample], RoutingSample], problem: str
) -> None:
    held = window()
    held.add(good)
    before = held.trace(fingerprint="f", saved_at=0.0).to_bytes()
    with pytest.raises(ValueError, match=problem.replace("[", r"\[")):
        held.add(change(good))
    assert held.trace(fingerprint="f", saved_at=0.0).to_bytes() == before


@pytest.mark.parametrize("sizes", [(0, 7, 2), (3, 7, 0), (3, 2, 3), (3, 70_000, 2)])
def test_a_window_of_no_model_is_refused(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="no window"):
        ActivationWindow(*sizes)
    with pytest.raises(ValueError, match="prior"):
        window(prior=np.ones((LAYERS, EXPERTS + 1)))


def test_a_trace_of_another_shape_is_refused() -> None:
    other = ActivationWindow(LAYERS, EXPERTS + 1, TOP_K)
    with pytest.raises(TraceError, match=r"3 MoE layers of 8 experts, 2 per token; the cluster's model has .* of 7"):
        window().add_trace(other.trace(fingerprint="f", saved_at=0.0))
