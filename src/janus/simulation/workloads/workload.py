"""A workload: when requests arrive, and how long their prompts and answers are."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from janus.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Workload:
    """N requests in order of arrival."""

    name: str
    #: float64[N]: seconds since the start, never falling.
    at_s: npt.NDArray[np.float64]
    #: int64[N], int64[N]: tokens, at least 1 each.
    prompt: npt.NDArray[np.int64]
    output: npt.NDArray[np.int64]
    #: Seconds that it is about: the last request may arrive before.
    duration_s: float
    #: Records that were left out, and why: requests that failed where the trace was taken.
    left_out: int = 0

    def __post_init__(self) -> None:
        if not len(self.at_s) == len(self.prompt) == len(self.output):
            raise ValueError(f"{len(self.at_s)} arrivals, {len(self.prompt)} prompts, {len(self.output)} outputs")
        if len(self.at_s) and (np.diff(self.at_s).min(initial=0.0) < 0 or self.at_s[0] < 0):
            raise ValueError("requests must be in order of arrival, from 0")
        if len(self.at_s) and min(self.prompt.min(), self.output.min()) < 1:
            raise ValueError("prompts and outputs have at least one token")

    def __len__(self) -> int:
        return len(self.at_s)

    @property
    def rate(self) -> float:
        """Requests per second, on average."""
        return len(self) / self.duration_s if self.duration_s else 0.0

    @property
    def tokens_per_s(self) -> float:
        """Output tokens per second, on average."""
        return float(self.output.sum()) / self.duration_s if self.duration_s else 0.0

    def peak_to_mean(self, window_s: float = 60.0) -> float:
        """Return the largest number of requests in a window, over the mean of all windows."""
        windows = max(1, int(np.ceil(self.duration_s / window_s)))
        counts = np.bincount((self.at_s // window_s).astype(np.int64), minlength=windows)
        return float(counts.max() / counts.mean()) if len(self) else 0.0

    def between(self, start_s: float, end_s: float) -> Workload:
        """Return the requests that arrive in ``[start_s, end_s)``, from 0 on.

        Raises:
            ConfigError: nothing of the workload lies there.
        """
        if not 0 <= start_s < end_s or start_s >= self.duration_s:
            raise ConfigError(
                "slice",
                f"[{start_s:g}, {end_s:g}) s is not in a workload of {self.duration_s:g} s",
                "give a start before the end, both within the workload",
            )
        end_s = min(end_s, self.duration_s)
        first, last = np.searchsorted(self.at_s, [start_s, end_s])
        return replace(
            self,
            at_s=self.at_s[first:last] - start_s,
            prompt=self.prompt[first:last],
            output=self.output[first:last],
            duration_s=end_s - start_s,
        )

    def faster(self, factor: float) -> Workload:
        """Return the same requests, ``factor`` times as many per second.

        Raises:
            ConfigError: the factor is not positive.
        """
        if not factor > 0:
            raise ConfigError("rate scale", f"is {factor:g}", "give a positive factor, such as 0.5 or 4")
        return replace(self, at_s=self.at_s / factor, duration_s=self.duration_s / factor)

    def within(self, max_model_len: int) -> Workload:
        """Return it with longer requests cut to a model's context: the prompt first, as the answer is what is paid for.

        A prompt keeps at least half of the context.
        """
        prompt = np.minimum(self.prompt, np.maximum(max_model_len - self.output, max_model_len // 2))
        return replace(self, prompt=prompt, output=np.minimum(self.output, max_model_len - prompt))
