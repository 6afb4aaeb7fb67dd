"""One small testbed for all tests that only look at it, and the reason where there can be none."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from benchmarks.testbed import LinkSpec, Testbed, unavailable


@pytest.fixture(scope="session")
def permitted() -> None:
    reason = unavailable()
    if reason is not None:
        pytest.skip(f"no testbed: {reason}")


@pytest.fixture(scope="module")
def bed(permitted: None) -> Iterator[Testbed]:
    with Testbed(("a0", "a1", "e0"), LinkSpec(latency_us=50, rate_gbit=10)) as up:
        yield up
