"""The cost of the paper's testbed: an H100's published rates, and what four points of figure 9 say beyond them.

With these rates alone steps take about a third as long as the paper's. What its software takes besides is not
published; three coefficients stand for it, the least-squares solution of the relative errors of four operating points
(TPOT is linear in them):

layer   seconds per layer, on each side: kernels that are launched and waited for
token   seconds per stream and step, on its attention instance: choosing tokens, bookkeeping
row     seconds per row and layer on the expert instance that it is sent to
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from benchmarks.paper import published
from benchmarks.paper.systems import JANUS, World, load_of

from janus.core.planning.baselines import Setting, separate
from janus.core.planning.hardware import Device, HardwareProfile
from janus.profiles import load_profile

_SHIPPED = "h100-80gb"
#: What nvidia-smi shows of an H100 80 GB, 81,559 MiB: 27 replicas per layer of DeepSeek-V2 fit only thus.
MEMORY_BYTES = 81_559 * 2**20
#: HBM3's 3.35 TB/s (NVIDIA H100 SXM data sheet) times what large reads reach of it.
BYTES_S = 3.35e12 * 0.8

#: (attention, expert instances, batch) -> TPOT.
Points: TypeAlias = Mapping[tuple[int, int, int], float]
_UNITS = {"layer": 1e-3, "token": 1e-3, "row": 1e-6}


def figure_9_points() -> Points:
    """Return TPOT of figure 9's operating points: B / (tokens per second and GPU) / GPUs."""
    found: dict[tuple[int, int, int], float] = {}
    for points in (published.CHOICES, published.TIGHTEST):
        found |= {(a, e, size): size / tpg / (a + e) for size, (a, e, tpg) in points.items()}
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """The testbed, and how well it explains the points."""

    profile: HardwareProfile
    #: Seconds, by the names above.
    coefficients: Mapping[str, float]
    points: Points
    found: Points

    def as_json(self) -> dict[str, Any]:
        """Return it as the result file has it."""
        device = self.profile.device()
        return {
            "profile": f"{_SHIPPED}, with its coefficients that were fitted to the paper replaced by these",
            "memory_bytes": device.memory_bytes,
            "weight_bytes_s": device.weight_bytes_s,
            "kv_bytes_s": device.kv_bytes_s,
            "flops_s": device.flops_s,
            "seconds": {name: float(f"{value:.4g}") for name, value in self.coefficients.items()},
            "points": [
                {
                    "deployment": f"{a}A{e}E",
                    "batch": size,
                    "paper_tpot_ms": round(1e3 * tpot, 2),
                    "tpot_ms": round(1e3 * float(self.found[a, e, size]), 2),
                }
                for (a, e, size), tpot in self.points.items()
            ],
        }


def bare_profile() -> HardwareProfile:
    """Return an H100's published rates, and nothing for software."""
    shipped = load_profile(_SHIPPED)
    device = replace(
        shipped.device(),
        memory_bytes=float(MEMORY_BYTES),
        weight_bytes_s=BYTES_S,
        kv_bytes_s=BYTES_S,
        attention_layer_s=0.0,
        expert_layer_s=0.0,
        step_s=0.0,
        token_s=0.0,
        row_s=0.0,
    )
    return replace(shipped, name="paper-testbed", devices={device.name: device})


def calibrate(world: World, points: Points) -> Calibration:
    """Return ``world``'s profile with the coefficients that explain ``points`` best; none is below 0.

    A coefficient whose best value is negative is left out, and the others are found without it.
    """
    setting = world.setting(JANUS, "DeepSeek-V2")
    names = list(_UNITS)
    wanted = np.array(list(points.values()))
    none = dict.fromkeys(_UNITS, 0.0)
    base, seconds = tpots(setting, none, points), none
    while names:
        slopes = [(tpots(setting, none | {name: _UNITS[name]}, points) - base) / wanted for name in names]
        solution, *_ = np.linalg.lstsq(np.stack(slopes, axis=1), (wanted - base) / wanted, rcond=None)
        if not (solution < 0).any():
            seconds = none | {name: float(x) * _UNITS[name] for name, x in zip(names, solution, strict=True)}
            break
        names.pop(int(solution.argmin()))
    found = dict(zip(points, tpots(setting, seconds, points).tolist(), strict=True))
    device = _with(setting.device, seconds)
    profile = replace(world.profile, devices={device.name: device})
    return Calibration(profile=profile, coefficients=seconds, points=points, found=found)


def tpots(setting: Setting, seconds: Mapping[str, float], points: Points) -> npt.NDArray[np.float64]:
    """Return the TPOT of every point with these coefficients."""
    device = _with(setting.device, seconds)
    profile = replace(setting.profile, devices={device.name: device})
    there = replace(setting, device=device, profile=profile)
    offers = [separate("janus", there, load_of(size), attention=a, experts=e) for a, e, size in points]
    return np.array([offer.step.total_s for offer in offers])


def _with(device: Device, seconds: Mapping[str, float]) -> Device:
    layer = seconds["layer"]
    return replace(
        device, attention_layer_s=layer, expert_layer_s=layer, token_s=seconds["token"], row_s=seconds["row"]
    )
