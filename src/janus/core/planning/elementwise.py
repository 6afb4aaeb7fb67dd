"""Comparisons that take numbers or arrays of them, so that one formula prices a single step or a whole plane.

Annotations say ``float``, which is what most callers have; the search passes arrays that broadcast. Numpy is not
imported for those who have none: where nobody has imported it, nobody has an array.
"""

from __future__ import annotations

import sys
from typing import Any


def larger(a: Any, b: Any) -> Any:
    """Return the larger of both, elementwise if one is an array."""
    return sys.modules["numpy"].maximum(a, b) if _is_array(a) or _is_array(b) else max(a, b)


def smaller(a: Any, b: Any) -> Any:
    """Return the smaller of both, elementwise if one is an array."""
    return sys.modules["numpy"].minimum(a, b) if _is_array(a) or _is_array(b) else min(a, b)


def choose(condition: Any, yes: Any, no: Any) -> Any:
    """Return ``yes`` where ``condition`` holds, else ``no``; elementwise if the condition is an array."""
    if _is_array(condition):
        return sys.modules["numpy"].where(condition, yes, no)
    return yes if condition else no


def every(condition: Any) -> bool:
    """Return whether ``condition`` holds, everywhere if it is an array."""
    return bool(condition.all()) if _is_array(condition) else bool(condition)


def _is_array(value: Any) -> bool:
    # Numbers, which are nearly all, need no look at numpy.
    if type(value) is float or type(value) is int:
        return False
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray)
