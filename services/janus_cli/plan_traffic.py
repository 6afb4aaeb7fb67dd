"""From a list of requests to the traffic that a plan is made for: that of the busiest window."""

from __future__ import annotations

import numpy as np

from janus.core.planning.steady import Traffic
from janus.errors import ConfigError
from janus.simulation.workloads import Workload, workload_of

#: Seconds of a workload that is given in words.
_WORDS_S = 24 * 3600.0


def busiest(text: str, window_s: float) -> Traffic:
    """Return the traffic of the window in which most output tokens are asked for; of a file, or of ``poisson:2``.

    Raises:
        ConfigError: there is no such file or kind of workload, or no request in it.
    """
    workload = workload_of(text, duration_s=_WORDS_S if ":" in text else 0.0)
    return traffic_of(workload, window_s)


def traffic_of(workload: Workload, window_s: float) -> Traffic:
    """Return the traffic of the busiest window; windows begin at every half of one. All of it, where that is shorter.

    Raises:
        ConfigError: there are no requests.
    """
    if not len(workload):
        raise ConfigError("--workload", f"{workload.name} has no requests", "give one with requests")
    window_s = min(window_s, workload.duration_s)
    starts = np.arange(0.0, max(workload.duration_s - window_s, 0.0) + window_s / 4, window_s / 2)
    first = np.searchsorted(workload.at_s, starts)
    last = np.searchsorted(workload.at_s, starts + window_s)
    tokens = np.concatenate([[0], np.cumsum(workload.output)])
    best = int((tokens[last] - tokens[first]).argmax())
    some = slice(int(first[best]), int(last[best]))
    gaps, output = np.diff(workload.at_s[some]), workload.output[some]
    return Traffic(
        requests_s=len(output) / window_s,
        prompt_tokens=float(workload.prompt[some].mean()),
        output_tokens=float(output.mean()),
        arrival_cv=float(gaps.std() / gaps.mean()) if len(gaps) > 1 and gaps.mean() > 0 else 1.0,
        output_cv=float(output.std() / output.mean()),
    )
