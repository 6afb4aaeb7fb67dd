"""Three minutes of 64 streams, then five times too much: `make soak`."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.load.soak import SoakSpec, soak

MODEL = Path(__file__).parents[2] / "models" / "janus-tiny"


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(900)
async def test_soak_without_error_or_growth() -> None:
    result = await soak(SoakSpec(model=str(MODEL)))
    assert result["problems"] == []
    assert result["load"]["requests"] > 64
