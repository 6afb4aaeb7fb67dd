"""What the gateway, and clients on the same machine, do with requests and tokens: seconds of a core, fitted. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from janus.core.planning.hardware import Figure
from janus.core.planning.host import Host
from janus.profiling.least_squares import solve

#: What each of them counts, by the field of ``Host`` that prices it; and where the search begins, in seconds.
_GATEWAY = {"gateway_request_s": "requests", "gateway_message_s": "messages", "gateway_token_s": "tokens"}
_CLIENT = {"client_request_s": "requests", "client_token_s": "tokens"}
_START_S = {"requests": 1e-3, "messages": 2e-4, "tokens": 3e-5}
#: What is so much less than where its search began is nothing.
_NOTHING = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class HostWork:
    """Some requests from the first byte to the last, and the processor time that they took beside the instances."""

    requests: int
    #: Messages with tokens that attention instances sent to the gateway: one for each step.
    messages: int
    tokens: int
    #: Seconds that all threads of the gateway ran, and of the process that was the clients.
    gateway_s: float
    client_s: float


def fit_host(cores: int, seen: Sequence[HostWork], *, cache_bytes: int = 0) -> tuple[Host, dict[str, Figure]]:
    """Return the host of so many cores, with that much cache, and its figures by their keys in a profile.

    Without observations there is none: nothing is known of what shares the cores.

    Raises:
        ConfigError: too few observations.
    """
    if not seen:
        return Host(), {}
    figures = _fitted(seen, [each.gateway_s for each in seen], _GATEWAY)
    figures |= _fitted(seen, [each.client_s for each in seen], _CLIENT)
    if cache_bytes:
        figures["cache_bytes"] = Figure(value=cache_bytes, source="the machine")
    host = Host(cores=cores, **{name: figure.value for name, figure in figures.items()})
    return host, {f"host.{name}": figure for name, figure in figures.items()}


def _fitted(seen: Sequence[HostWork], seconds: Sequence[float], priced: dict[str, str]) -> dict[str, Figure]:
    """Each observation counts in proportion to what it took. What was never counted has no figure."""
    names = [name for name, counted in priced.items() if any(getattr(each, counted) for each in seen)]
    counts = np.array([[getattr(each, priced[name]) for name in names] for each in seen], dtype=np.float64)
    # A clock that ticks in tenths of a millisecond may see nothing of the shortest.
    took = np.maximum(np.array(seconds, dtype=np.float64), 1e-4)
    start = np.array([_START_S[priced[name]] for name in names])
    found = solve(lambda values: (counts @ values) / took - 1, start)
    figures = {}
    for index, name in enumerate(names):
        value, low, high = (float(f"{each[index]:.6g}") for each in (found.values, found.low, found.high))
        if value < _NOTHING * start[index]:
            value, low = 0.0, 0.0
        figures[name] = Figure(value=value, low=min(low, value), high=max(high, value))
    return figures
