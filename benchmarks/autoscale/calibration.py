"""What one instance of each role gives few streams and many: from this, the SLO and the load of a run follow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.autoscale.quota import Quotas
from benchmarks.autoscale.runs import Watch, cluster
from benchmarks.load.client import LoadSpec, run_load

_FEW, _MANY, _MIDDLE = 4, 48, 40
_SECONDS = 6.0


@dataclass(frozen=True, slots=True, kw_only=True)
class OneOfEach:
    """Mean TPOT of two numbers of streams that are always there, in seconds."""

    few: int = _FEW
    many: int = _MANY
    #: Streams that the SLO is made for.
    middle: int = _MIDDLE
    few_s: float
    many_s: float

    def tpot_s(self, streams: float) -> float:
        """TPOT of so many streams: on the line through the two."""
        return self.few_s + (streams - self.few) * max(0.0, self.many_s - self.few_s) / (self.many - self.few)

    def rate(self, slo_s: float, output: int) -> float:
        """Requests per second, of ``output`` tokens each, that lead to a TPOT of ``slo_s`` (Little's law)."""
        slope = max(1e-6, (self.many_s - self.few_s) / (self.many - self.few))
        streams = max(1.0, self.few + (slo_s - self.few_s) / slope)
        return streams / (output * slo_s)


async def calibrate(arguments: Sequence[str], *, cores: float, prompt: int, output: int) -> OneOfEach:
    """Measure a cluster that is started with ``arguments``."""
    with Quotas(cores) as quotas:
        async with cluster(arguments) as (url, directory, _):
            Watch(directory, quotas).look()
            found = []
            for streams in (_FEW, _MANY):
                spec = LoadSpec(concurrency=streams, duration_s=_SECONDS, prompt_tokens=prompt, max_tokens=output)
                report = await run_load(url, spec)
                if report.tpot_ms is None or report.errors:
                    raise RuntimeError(f"{streams} streams on one of each: {report.errors or 'no answer'}")
                found.append(round(report.tpot_ms.mean / 1000, 5))
    return OneOfEach(few_s=found[0], many_s=found[1])
