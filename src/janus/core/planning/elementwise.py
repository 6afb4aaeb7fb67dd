"""Comparisons that take numbers or arrays of them, so that one formula prices a single step or a whole plane.

Annotations say ``float``, which is what most callers have; the search passes arrays that broadcast.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def larger(a: Any, b: Any) -> Any:
    """Return the larger of both, elementwise if one is an array."""
    return np.maximum(a, b) if isinstance(a, np.ndarray) or isinstance(b, np.ndarray) else max(a, b)


def smaller(a: Any, b: Any) -> Any:
    """Return the smaller of both, elementwise if one is an array."""
    return np.minimum(a, b) if isinstance(a, np.ndarray) or isinstance(b, np.ndarray) else min(a, b)
