"""What came out of a simulation: figures that users of a cluster and those who pay for it ask for."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from janus.simulation.config import ClusterConfig, Slo
from janus.simulation.records import Records, SizeChange, Struck

_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Mean and percentiles, in seconds; all 0 of nothing."""

    mean: float
    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, values: _Floats) -> Spread:
        """The spread of ``values``."""
        if not len(values):
            return cls(mean=0.0, p50=0.0, p90=0.0, p99=0.0)
        p50, p90, p99 = np.percentile(values, (50, 90, 99))
        return cls(mean=float(values.mean()), p50=float(p50), p90=float(p90), p99=float(p99))


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One run. Everything in it is simulated."""

    workload: str
    #: Seconds in which requests arrived, and until the last one had ended.
    duration_s: float
    ended_s: float
    requests: int
    #: Requests by how they ended: ``finished``, or the code of the error that the client got.
    outcomes: dict[str, int]
    #: Times that a request went on at another attention instance.
    resumed: int
    prompt_tokens: int
    output_tokens: int
    ttft_s: Spread
    #: Over requests of two tokens or more.
    tpot_s: Spread
    #: Share of all requests that finished within the SLO.
    slo_attainment: float
    #: Requests, and output tokens of such, per second that met the SLO.
    goodput_requests_s: float
    goodput_tokens_s: float
    #: Output tokens per second until the last request had ended.
    throughput_tokens_s: float
    #: Mean requests in the cluster at a time, while requests arrived; of those that finished.
    in_flight: float
    #: Device-hours while requests arrived, by role; a process counts from its launch.
    device_hours: dict[str, float]
    cost: float
    #: TPG: output tokens per second and device, over ``duration_s``.
    tokens_per_device_s: float
    sizes: tuple[SizeChange, ...] = ()
    faults: tuple[Struck, ...] = ()

    @classmethod
    def of(
        cls,
        records: Records,
        *,
        workload: str,
        duration_s: float,
        slo: Slo,
        config: ClusterConfig,
        device_s: dict[str, float],
        tokens_by_then: int,
        now: float,
    ) -> Report:
        """Sum up the run of ``workload``.

        Args:
            duration_s: how long requests arrived.
            device_s: device-seconds by role until then.
            tokens_by_then: output tokens until then.
        """
        ttft, tpot, tokens = (np.array(each) for each in (records.ttft_s, records.tpot_s, records.tokens_of))
        arrived, ended = np.array(records.arrived_s), np.array(records.ended_s)
        met = np.array([slo.met(tpot_s=t, ttft_s=f) for t, f in zip(tpot, ttft, strict=True)], dtype=bool)
        ended_s = float(max(ended.max(initial=0.0), duration_s))
        deployment = config.deployment(1, 1)
        hours = {role: seconds / 3600 for role, seconds in device_s.items()}
        devices_s = sum(device_s.values())
        # What was in the cluster while requests arrived.
        stayed = np.minimum(ended, duration_s) - arrived
        return cls(
            workload=workload,
            duration_s=duration_s,
            ended_s=now if not len(ended) else float(ended.max()),
            requests=records.arrivals,
            outcomes=dict(sorted(records.outcomes.items())),
            resumed=records.resumed,
            prompt_tokens=records.prompt_tokens,
            output_tokens=records.output_tokens,
            ttft_s=Spread.of(ttft),
            tpot_s=Spread.of(tpot[tokens > 1]),
            slo_attainment=float(met.sum()) / max(1, records.arrivals),
            goodput_requests_s=float(met.sum()) / ended_s,
            goodput_tokens_s=float(tokens[met].sum()) / ended_s,
            throughput_tokens_s=records.output_tokens / ended_s,
            in_flight=float(stayed.sum()) / duration_s,
            device_hours=hours,
            cost=hours["attention"] * deployment.attention_device.cost_per_hour
            + hours["expert"] * deployment.expert_device.cost_per_hour,
            tokens_per_device_s=tokens_by_then / devices_s if devices_s else 0.0,
            sizes=tuple(records.sizes),
            faults=tuple(records.faults),
        )

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)
