"""A whole profile: clusters started one after the other, every point measured on each, and the fit of all of it."""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from janus.chaos.scenario import ClusterNeeds
from janus.chaos.suite import with_cluster
from janus.cluster.state import RunDirectory
from janus.config.options import DType
from janus.profiling import machine
from janus.profiling.fit import Fit, fit
from janus.profiling.host_work import HostWork
from janus.profiling.machine import Conditions
from janus.profiling.models import Measured, measured, write_models
from janus.profiling.observations import Observation
from janus.profiling.points import FULL, NONE, Effort, points
from janus.profiling.streams import Bench, Prober
from janus.profiling.template import template

#: Called with what is worth a line meanwhile.
Tell = Callable[[str], None]

#: From here on it is worth saying that others use the machine.
_BUSY_CORES = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What to measure. ``model``: ``None`` = two with random weights, written for the purpose."""

    model: Path | None = None
    effort: Effort = FULL
    dtype: DType = "float32"
    #: Threads of each instance; 0 = instances of a role share the machine's cores, as ``janus up`` has it.
    threads: int = 0

    def conditions(self) -> Conditions:
        """What observations of these settings on this machine have in common."""
        return Conditions.here(dtype=self.dtype, threads=self.threads)


@dataclass(frozen=True, slots=True, kw_only=True)
class Earlier:
    """What another run has seen under the same conditions. ``measured``: as in its profile."""

    observations: tuple[Observation, ...] = ()
    load_rates: tuple[float, ...] = ()
    host_work: tuple[HostWork, ...] = ()
    measured: Mapping[str, str] = field(default_factory=dict)
    conditions: Conditions | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The fit and what it was made of."""

    conditions: Conditions
    fit: Fit
    observations: tuple[Observation, ...]
    #: Bytes per second that each expert instance loaded its replicas at.
    load_rates: tuple[float, ...]
    #: What gateway and clients took.
    host_work: tuple[HostWork, ...] = ()


async def run(settings: Settings, tell: Tell, *, earlier: Earlier | None = None) -> Result:
    """Measure this machine, and fit, what was seen ``earlier`` included.

    Without any effort what was seen earlier is fitted alone, wherever that was.

    Raises:
        ConfigError: the model cannot be served.
        LaunchError: an instance did not start.
        JanusError: a request failed.
    """
    campaign, earlier = _Campaign(settings, tell), earlier or Earlier()
    if settings.effort != NONE:
        await _measure(settings, campaign)
    observations = (*earlier.observations, *campaign.observations)
    rates = (*earlier.load_rates, *campaign.load_rates)
    host_work = (*earlier.host_work, *campaign.host_work)
    conditions = settings.conditions()
    if settings.effort == NONE and earlier.conditions is not None:
        conditions = earlier.conditions
    unfitted = template(conditions, rates, _circumstances(settings, observations, earlier), host_work=host_work)
    return Result(
        conditions=conditions,
        fit=fit(observations, unfitted),
        observations=observations,
        load_rates=rates,
        host_work=host_work,
    )


async def _measure(settings: Settings, campaign: _Campaign) -> None:
    with tempfile.TemporaryDirectory(prefix="janus-profile-") as scratch:
        if settings.model is not None:
            models = [measured(settings.model, dtype=settings.dtype)]
        else:
            campaign.tell("writing two models with random weights")
            models = write_models(Path(scratch), dtype=settings.dtype, quick=settings.effort != FULL)
        for model in models:
            for experts in settings.effort.experts:
                if experts <= model.sizes.experts:
                    await campaign.measure(model, experts)


def _circumstances(settings: Settings, observations: Sequence[Observation], earlier: Earlier) -> dict[str, str]:
    """What a profile says of how it was measured."""
    others = {"others_cores": f"{statistics.fmean(seen.others_cores for seen in observations):.2f}"}
    if settings.effort == NONE:
        return {**earlier.measured, **others}
    conditions = settings.conditions()
    now: dict[str, str] = {
        "command": " ".join(["janus", *sys.argv[1:]]),
        "hardware": conditions.hardware,
        "dtype": conditions.dtype,
        "threads": str(conditions.threads),
        "commit": machine.commit(),
        "date": machine.today(),
        **others,
    }
    if earlier.measured:
        now["earlier"] = ", ".join(f"{key} {earlier.measured.get(key, '?')}" for key in ("date", "commit", "command"))
    return now


class _Campaign:
    """Collects what is seen on one cluster after the other."""

    def __init__(self, settings: Settings, tell: Tell) -> None:
        self._settings = settings
        self.tell = tell
        self.observations: list[Observation] = []
        #: Bytes per second that expert instances loaded their replicas at.
        self.load_rates: list[float] = []
        self.host_work: list[HostWork] = []

    async def measure(self, model: Measured, experts: int) -> None:
        """Measure every point on a cluster of one attention and ``experts`` expert instances."""

        async def work(name: str) -> None:
            bench = Bench(
                state=RunDirectory(name).read(),
                model=model.sizes,
                vocab_size=model.vocab_size,
                max_model_len=model.max_model_len,
                attention=1,
                experts=experts,
            )
            async with httpx.AsyncClient(trust_env=False) as client:
                await self._points(Prober(bench, client), bench)

        settings = self._settings
        needs = ClusterNeeds(
            attention=1,
            experts=experts,
            options={
                "dtype": settings.dtype,
                "threads": settings.threads,
                # One way, and one step at a time: what the planner's model has a price for.
                "micro-batches": "1",
                "exchange": "direct",
                "restart": "never",
            },
        )
        await with_cluster(needs, work, model=model.path, name=f"profile-{os.getpid()}", tell=_silent)

    async def _points(self, prober: Prober, bench: Bench) -> None:
        effort = self._settings.effort
        plan = points(effort, max_model_len=bench.max_model_len)
        await prober.warm_up(plan)
        for number, point in enumerate(plan, start=1):
            seen = await prober.observe(point, effort)
            self.observations.append(seen)
            busy = f"; others used {seen.others_cores:.1f} cores" if seen.others_cores > _BUSY_CORES else ""
            time = f"{1e3 * seen.total_s:.2f} ms ({1e3 * seen.low_s:.2f} to {1e3 * seen.high_s:.2f})"
            self.tell(f"{bench.model.name} 1A{bench.experts}E {number}/{len(plan)}: {point.name}: {time}{busy}")
        self.host_work += [await prober.burst(streams, tokens) for streams, tokens in effort.bursts]
        self.load_rates += await prober.load_rates()


def _silent(_: str) -> None:
    """What ``janus up`` tells of its instances is not what somebody who profiles waits for."""
