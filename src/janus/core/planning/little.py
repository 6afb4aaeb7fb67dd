"""Little's law: the batch that a rate of tokens leads to (equation 2 of arXiv 2512.13525), B = D T(B).

For planner and autoscaler alike, numbers or arrays; without numpy where nobody has arrays.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from janus.core.planning.elementwise import choose, every, larger, smaller

#: Cuts of the bracket in which the batch lies, at most, and the relative error at which they end.
_CUTS = 60
_CLOSE = 1e-5


def settled(rate: Any, step_s: Callable[[Any], Any], *, least: Any, most: Any, oneself: float = 0.0) -> tuple[Any, Any]:
    """Return the batch between ``least`` and ``most`` at which B = oneself + rate step_s(B), and whether it settles.

    It settles if so many tokens per second can be served by ``most`` streams; else, and where the batch would be more,
    it is ``most``.

    Args:
        rate: D, output tokens per second, above 0.
        step_s: T(B), which does not fall with B.
        oneself: 1 = a stream sees itself beside those that are there in the mean.
    """

    def excess(batch: Any) -> Any:
        return batch - oneself - rate * step_s(batch)

    at_least, at_most = excess(least), excess(most)
    batch = choose(at_most >= 0, _crossing(excess, least, most, at_least, at_most), most)
    return batch, at_most + oneself >= 0


def _crossing(f: Callable[[Any], Any], low: Any, high: Any, at_low: Any, at_high: Any) -> Any:
    """Return where ``f`` rises through 0 between ``low`` and ``high``; anything where it does not.

    Bisection that cuts where the secant does (Illinois: Dowell and Jarratt, BIT 11, 1971): a few cuts are enough.
    """
    never = (at_low >= 0) | (at_high < 0)
    found, side = high, 0.0 * low
    for _ in range(_CUTS):
        span = at_high - at_low
        found = high - at_high * (high - low) / choose(span > 0, span, 1.0)
        found = smaller(larger(found, low), high)
        value = f(found)
        if every(never | (abs(value) <= _CLOSE * found)):
            break
        below = value < 0
        low, high = choose(below, found, low), choose(below, high, found)
        # An end that stays twice in a row counts for half, or the other would crawl.
        at_low = choose(below, value, choose(side > 0, at_low / 2, at_low))
        at_high = choose(below, choose(side < 0, at_high / 2, at_high), value)
        side = choose(below, -1.0, 1.0)
    return found
