"""Least squares with positive parameters, and confidence intervals that do not assume equal errors. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from janus.errors import ConfigError

Vector: TypeAlias = npt.NDArray[np.float64]

#: Parameters are varied by this share to see what the residuals do; small beside the distance of any kink.
_STEP = 1e-5
_ITERATIONS = 200
#: An iteration that wins less than this share of the sum of squares is the last.
_ENOUGH = 1e-10
_DAMPING = (1e-3, 1e-9, 1e12)
#: A parameter below this share of its start counts as none at all.
_FLOOR = 1e-9
_MOST_LEVERAGE = 0.99
#: Where else descents begin: even and odd parameters times so much, since it is their ratios that decide at kinks.
_STARTS = ((1.0, 1.0), (30.0, 30.0), (1 / 30, 1 / 30), (1 / 10, 10.0), (10.0, 1 / 10))


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """Parameters with the bounds of their 95 % confidence intervals, all positive, and the residuals left."""

    values: Vector
    low: Vector
    high: Vector
    residuals: Vector


def solve(residuals: Callable[[Vector], Vector], start: Vector) -> Solution:
    """Return the positive parameters that make the sum of squares of ``residuals`` smallest.

    Levenberg-Marquardt in the parameters' logarithms, so that none becomes negative and their scales do not matter;
    from ``start``, and from far on either side of it, as kinks make valleys that are not the deepest. The intervals do
    not assume that residuals err alike: they come from the estimator HC3 (MacKinnon and White 1985), which is the one
    for few observations, some of which weigh much. That of a parameter that tends to nothing begins at 0, and one that
    no residual depends on may be anything: 0 to infinity.

    Raises:
        ConfigError: no more residuals than parameters.
    """
    if len(residuals(start)) <= len(start):
        raise ConfigError(
            "observations",
            f"{len(residuals(start))} numbers for {len(start)} parameters",
            "measure more batch sizes and contexts",
        )
    descents = [_descend(residuals, start * np.resize(factors, len(start))) for factors in _STARTS]
    values, left = min(descents, key=lambda found: float(found[1] @ found[1]))
    low, high = _intervals(_slopes(residuals, np.log(values)) / values, left, values)
    return Solution(values=values, low=low, high=high, residuals=left)


def _descend(residuals: Callable[[Vector], Vector], start: Vector) -> tuple[Vector, Vector]:
    """Parameters from where no step leads further down, and the residuals there."""
    logs = np.log(start)
    floor = logs + np.log(_FLOOR)
    left = residuals(start)
    damping, least, most = _DAMPING
    for _ in range(_ITERATIONS):
        slopes = _slopes(residuals, logs)
        normal, gradient = slopes.T @ slopes, slopes.T @ left
        scale = np.maximum(np.diag(normal), np.finfo(float).tiny)
        before = float(left @ left)
        while damping < most:
            step = np.linalg.solve(normal + damping * np.diag(scale), -gradient)
            # A step of more than a factor of ten is a guess.
            tried = np.maximum(logs + np.clip(step, -2.3, 2.3), floor)
            there = residuals(np.exp(tried))
            if float(there @ there) < before:
                break
            damping *= 4
        else:
            break
        logs, left, damping = tried, there, max(damping / 4, least)
        if before - float(left @ left) <= _ENOUGH * before:
            break
    return np.exp(logs), left


def _slopes(residuals: Callable[[Vector], Vector], logs: Vector) -> Vector:
    """Derivatives by the logarithm of each parameter: [residuals, parameters]."""
    columns = []
    for index in range(len(logs)):
        up, down = logs.copy(), logs.copy()
        up[index] += _STEP
        down[index] -= _STEP
        columns.append((residuals(np.exp(up)) - residuals(np.exp(down))) / (2 * _STEP))
    return np.stack(columns, axis=1)


def _intervals(slopes: Vector, left: Vector, values: Vector) -> tuple[Vector, Vector]:
    scale = np.linalg.norm(slopes, axis=0)
    matters = scale > 0
    scaled = slopes / np.where(matters, scale, 1)
    # The pseudo-inverse: two that cannot be told apart get wide intervals, not an error.
    inverse = np.linalg.pinv(scaled.T @ scaled, rcond=1e-12)
    # How much of each residual the fit takes away; one that decides a parameter alone says nothing of its error.
    leverage = np.minimum(np.einsum("ip,pq,iq->i", scaled, inverse, scaled), _MOST_LEVERAGE)
    meat = scaled.T @ (scaled * ((left / (1 - leverage)) ** 2)[:, None])
    covariance = inverse @ meat @ inverse
    spread = np.sqrt(np.maximum(np.diag(covariance), 0)) * quantile(len(left) - len(values))
    error = np.divide(spread, scale, out=np.full_like(spread, np.inf), where=matters)
    return np.maximum(values - error, 0), values + error


def quantile(freedom: int) -> float:
    """Return the 97.5 % quantile of Student's distribution (Cornish-Fisher; within 1 % from 4 degrees on)."""
    z = NormalDist().inv_cdf(0.975)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3
