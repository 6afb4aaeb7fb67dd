"""Little's law is solved to the batch that it is asked for, one at a time or many at once."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from janus.core.planning.little import settled

RATES, SECONDS = st.floats(0.1, 1e4), st.floats(1e-6, 0.1)


@given(rate=RATES, fixed=SECONDS, slope=st.floats(0, 1e-3), most=st.floats(2, 1e4), oneself=st.sampled_from([0.0, 1.0]))
def test_a_batch_that_settles_solves_the_equation(
    rate: float, fixed: float, slope: float, most: float, oneself: float
) -> None:
    def step_s(batch: float) -> float:
        return fixed + slope * batch

    batch, settles = settled(rate, step_s, least=oneself, most=most, oneself=oneself)
    assert settles == (rate * step_s(most) <= most)
    assert oneself <= batch <= most
    if batch < most:
        assert batch == pytest.approx(oneself + rate * step_s(batch), rel=1e-4)
    else:
        assert oneself + rate * step_s(most) >= most * (1 - 1e-4)


def test_arrays_are_solved_as_each_of_them() -> None:
    rates, most = np.array([[1.0], [50.0], [400.0]]), np.array([[2.0, 10.0, 100.0]])

    def step_s(batch: np.ndarray | float) -> np.ndarray | float:
        return 0.02 + 0.001 * batch

    batches, settles = settled(rates, step_s, least=1.0 + 0.0 * most, most=most, oneself=1.0)
    for row, column in np.ndindex(3, 3):
        batch, settles_too = settled(float(rates[row, 0]), step_s, least=1.0, most=float(most[0, column]), oneself=1.0)
        assert batches[row, column] == pytest.approx(batch, rel=1e-4)
        assert bool(settles[row, column]) == settles_too


def test_who_has_no_arrays_needs_no_numpy() -> None:
    """The placement-controller scales by what it learns without it."""
    code = (
        "import sys; from janus.core.planning.little import settled; "
        "settled(5.0, lambda batch: 0.1, least=0.0, most=9.0); import janus.core.scaling.learned; "
        "sys.exit('numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
