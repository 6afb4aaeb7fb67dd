"""Least squares: the parameters that were planted, intervals that cover them, and what cannot be told."""

from __future__ import annotations

from functools import partial

import numpy as np
import numpy.typing as npt
import pytest

from janus.errors import ConfigError
from janus.profiling.least_squares import quantile, solve

Vector = npt.NDArray[np.float64]


def kinked(x: Vector, y: Vector, values: Vector) -> Vector:
    """A constant, a line, and the larger of two lines: the shape of a step time."""
    constant, line, read, compute = values
    return np.asarray(constant + line * x + np.maximum(read * y, compute * x * y), dtype=np.float64)


def off(x: Vector, y: Vector, target: Vector, values: Vector) -> Vector:
    """How far that is from ``target``, as a share of it."""
    return kinked(x, y, values) / target - 1


def test_planted_parameters_are_found_without_noise() -> None:
    """Over four decades of each; kinks make valleys, and hardly one of them is taken for the deepest."""
    found = 0
    for seed in range(30):
        draw = np.random.default_rng(seed)
        truth = 10.0 ** draw.uniform(-2, 2, 4)
        x, y = draw.uniform(0, 3, 60), draw.uniform(0.1, 2, 60)
        target = kinked(x, y, truth)
        solution = solve(partial(off, x, y, target), np.ones(4))
        # A line that is never the larger one has no slope to be found; the target is met all the same.
        found += bool(np.abs(solution.residuals).max() < 1e-3)
    assert found >= 29


def test_intervals_cover_what_was_planted_about_as_often_as_they_say() -> None:
    draw = np.random.default_rng(11)
    truth = np.array([0.3, 1.2, 2.0, 0.9])
    covered, runs = np.zeros(4), 80
    for _ in range(runs):
        x, y = draw.uniform(0, 5, 80), draw.uniform(0.1, 2, 80)
        # Errors in proportion to the target, as those of timings are.
        target = kinked(x, y, truth) * (1 + draw.normal(0, 0.05, 80))
        found = solve(partial(off, x, y, target), np.ones(4))
        covered += (found.low <= truth) & (truth <= found.high)
    assert (covered / runs > 0.87).all()
    assert (covered / runs < 1).all()


def test_what_is_not_there_is_found_to_be_nothing() -> None:
    draw = np.random.default_rng(2)
    x, z = draw.uniform(1, 3, 50), draw.uniform(1, 3, 50)
    target = 2 * x * (1 + draw.normal(0, 0.02, 50))
    found = solve(lambda values: (values[0] * x + values[1] * z) / target - 1, np.ones(2))
    assert found.values[0] == pytest.approx(2, rel=0.05)
    assert found.low[1] == 0
    assert found.high[1] < 0.1


def test_scales_do_not_matter() -> None:
    draw = np.random.default_rng(5)
    x, y = draw.uniform(0, 5, 40), draw.uniform(0.1, 2, 40)
    target = kinked(x, y, np.array([0.3, 1.2, 2.0, 0.9])) * (1 + draw.normal(0, 0.05, 40))
    scale = np.array([1e-9, 1e6, 1e-12, 1.0])
    plain = solve(lambda values: kinked(x, y, values) / target - 1, np.ones(4))
    scaled = solve(lambda values: kinked(x, y, values / scale) / target - 1, scale)
    assert scaled.values / scale == pytest.approx(plain.values, rel=1e-6)
    assert scaled.high / scale == pytest.approx(plain.high, rel=1e-4)


def test_two_that_cannot_be_told_apart_get_wide_intervals() -> None:
    draw = np.random.default_rng(3)
    x = draw.uniform(1, 3, 30)
    target = 2 * x * (1 + draw.normal(0, 0.02, 30))
    found = solve(lambda values: (values[0] + values[1]) * x / target - 1, np.ones(2))
    assert found.values.sum() == pytest.approx(2, rel=0.05)


def test_too_few_numbers_are_refused() -> None:
    with pytest.raises(ConfigError, match="2 numbers for 2 parameters"):
        solve(lambda values: values - 3, np.ones(2))


def test_a_parameter_that_nothing_depends_on_may_be_anything() -> None:
    found = solve(lambda values: values[0] * np.arange(1.0, 6.0) - 3, np.ones(2))
    assert (found.low[1], found.high[1]) == (0, np.inf)
    assert found.high[0] < np.inf


@pytest.mark.parametrize(("freedom", "expected"), [(4, 2.776), (5, 2.571), (10, 2.228), (30, 2.042), (1000, 1.962)])
def test_the_quantile_is_students(freedom: int, expected: float) -> None:
    assert quantile(freedom) == pytest.approx(expected, rel=0.003)
