"""A whole profile: clusters started one after the other, every point measured on each, and the fit of all of it."""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from janus.chaos.scenario import ClusterNeeds
from janus.chaos.suite import with_cluster
from janus.cluster.environment import usable_cores
from janus.cluster.state import RunDirectory
from janus.config.options import DType
from janus.core.exchange_cost import LinkCost
from janus.core.planning.hardware import Device, Figure, HardwareProfile
from janus.errors import JanusError
from janus.profiling import machine
from janus.profiling.fit import Fit, fit
from janus.profiling.least_squares import quantile
from janus.profiling.models import Measured, measured, write_models
from janus.profiling.observations import Observation
from janus.profiling.points import FULL, Effort, points
from janus.profiling.streams import Bench, Prober

#: Called with what is worth a line meanwhile.
Tell = Callable[[str], None]

#: Instances of one machine are on one node, however many there are: as many as ``janus up`` starts.
_ON_ONE_NODE = 1024
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Earlier:
    """What another run has seen under the same conditions."""

    observations: tuple[Observation, ...] = ()
    load_rates: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The fit and what it was made of."""

    fit: Fit
    observations: tuple[Observation, ...]
    #: Bytes per second that each expert instance loaded its replicas at.
    load_rates: tuple[float, ...]


async def run(settings: Settings, tell: Tell, *, earlier: Earlier | None = None) -> Result:
    """Measure this machine, and fit, what was seen ``earlier`` included.

    Raises:
        ConfigError: the model cannot be served.
        LaunchError: an instance did not start.
        JanusError: a request failed.
    """
    campaign = _Campaign(settings, tell)
    with tempfile.TemporaryDirectory(prefix="janus-profile-") as scratch:
        if settings.model is not None:
            models = [measured(settings.model, dtype=settings.dtype)]
        else:
            tell("writing two models with random weights")
            models = write_models(Path(scratch), dtype=settings.dtype, quick=settings.effort != FULL)
        for model in models:
            for experts in settings.effort.experts:
                if experts <= model.sizes.experts:
                    await campaign.measure(model, experts)
    earlier = earlier or Earlier()
    observations = (*earlier.observations, *campaign.observations)
    rates = (*earlier.load_rates, *campaign.load_rates)
    template = _template(settings, rates, statistics.fmean(seen.others_cores for seen in observations))
    return Result(fit=fit(observations, template), observations=observations, load_rates=rates)


def conditions(settings: Settings) -> dict[str, str]:
    """What must be the same for observations to be fitted together, by its key in a profile's ``measured``."""
    cores, memory = usable_cores(), psutil.virtual_memory().total
    return {
        "hardware": f"{machine.cpu_name()}, {cores} cores, {memory / 2**30:.1f} GiB",
        "dtype": settings.dtype,
        "threads": str(settings.threads),
    }


class _Campaign:
    """Collects what is seen on one cluster after the other."""

    def __init__(self, settings: Settings, tell: Tell) -> None:
        self._settings = settings
        self._tell = tell
        self.observations: list[Observation] = []
        #: Bytes per second that expert instances loaded their replicas at.
        self.load_rates: list[float] = []

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
            self._tell(f"{bench.model.name} 1A{bench.experts}E {number}/{len(plan)}: {point.name}: {time}{busy}")
        self.load_rates += await prober.load_rates()


def _silent(_: str) -> None:
    """What ``janus up`` tells of its instances is not what somebody who profiles waits for."""


def _template(settings: Settings, rates: Sequence[float], others: float) -> HardwareProfile:
    """A profile of this machine in which the fitted figures are still missing.

    ``others``: cores that processes which do not belong to the measurement kept busy, as a mean.
    """
    cores, memory = usable_cores(), psutil.virtual_memory().total
    # What a device is: all cores, which the instances of a role share, or as many as an instance has threads.
    alone = cores // settings.threads if settings.threads else 1
    name, instances = f"cpu-{settings.threads}" if settings.threads else "cpu", max(1, alone)
    share = f"{memory / 2**30:.1f} GiB of the machine, by {2 * instances}: the other role has as much"
    device = Device(
        name=name,
        memory_bytes=round(memory / instances / 2),
        weight_bytes_s=1.0,
        kv_bytes_s=1.0,
        flops_s=1.0,
        load_bytes_s=_mean(rates).value,
        shared_cores=instances,
    )
    link = LinkCost(message_s=0.0, latency_s=0.0, byte_s=0.0)
    threads = f"Instances of --threads {settings.threads}" if settings.threads else "Instances that share the cores"
    return HardwareProfile(
        name=f"measured-{machine.slug()}",
        kind="measured",
        about=f"{threads} on {machine.cpu_name()}, in {settings.dtype}. The gateway and its clients were there too.",
        devices={name: device},
        intra=link,
        inter=link,
        devices_per_node=_ON_ONE_NODE,
        figures={
            f"{name}.memory_bytes": Figure(value=device.memory_bytes, source=share),
            f"{name}.load_bytes_s": _mean(rates),
            f"{name}.cost_per_hour": Figure(value=1.0, source="a unit"),
        },
        measured={
            "command": " ".join(["janus", *sys.argv[1:]]),
            **conditions(settings),
            "commit": machine.commit(),
            "date": machine.today(),
            "others_cores": f"{others:.2f}",
        },
    )


def _mean(rates: Sequence[float]) -> Figure:
    """Mean and 95 % interval of what expert instances saw when they loaded."""
    if not rates:
        raise JanusError("no expert instance says how fast it loaded its replicas")
    source = f"{len(rates)} expert instances, each as it started, from files in the page cache"
    value = round(statistics.fmean(rates))
    if len(rates) < 3:
        return Figure(value=value, source=source)
    half = quantile(len(rates) - 1) * statistics.stdev(rates) / len(rates) ** 0.5
    return Figure(value=value, low=round(max(0.0, value - half)), high=round(value + half), source=source)
