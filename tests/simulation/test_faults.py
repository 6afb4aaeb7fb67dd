"""Faults in words."""

from __future__ import annotations

import pytest

from janus.errors import ConfigError
from janus.simulation.config import Fault
from janus.simulation.faults import faults_of


def test_moments_targets_and_returns() -> None:
    assert faults_of("node@90.5+20, expert-3@60,attention@30+never", duration_s=100) == [
        Fault(at_s=30, target="attention", back_s=None),
        Fault(at_s=60, target="expert-3", back_s=1.0),
        Fault(at_s=90.5, target="node", back_s=20),
    ]
    assert faults_of("", duration_s=100) == []


def test_a_rate_is_per_hour_and_drawn_from_the_seed() -> None:
    first, again, other = (faults_of("expert:60/h+5", duration_s=36_000, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    assert 500 < len(first) < 700
    assert {fault.back_s for fault in first} == {5.0}
    assert all(0 <= fault.at_s < 36_000 for fault in first)


@pytest.mark.parametrize("text", ["expert", "expert@soon", "gateway:2/h", "expert@3+later", "expert:2"])
def test_what_is_no_fault_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match="is no fault"):
        faults_of(text, duration_s=10)
