"""The profile that points are simulated with, and the same measurement without the host that everything shares."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.simulator.pace import Pace, memory_gb_s

from janus.cluster.environment import usable_cores
from janus.core.planning.hardware import HardwareProfile
from janus.core.planning.host import Host
from janus.errors import ConfigError
from janus.profiles import load_profile, parse, to_toml
from janus.profiling import campaign
from janus.profiling.fit import fit
from janus.profiling.points import QUICK


@dataclass(frozen=True, slots=True, kw_only=True)
class Profiles:
    """``bare``: as if gateway, clients and other instances took none of the cores; all their time is the steps' own."""

    profile: HardwareProfile
    bare: HardwareProfile
    #: GB/s of memory while it was measured; 0 = not known.
    memory_gb_s: float = 0.0

    def kept(self) -> dict[str, str | float]:
        """Return both as text, for a result file."""
        return {
            "profile_memory_gb_s": round(self.memory_gb_s, 2),
            "profile_toml": to_toml(self.profile),
            "bare_profile_toml": to_toml(self.bare),
        }


async def measured(tell: Callable[[str], None]) -> Profiles:
    """Measure this machine, with a minute or two of its clusters."""
    cores = usable_cores()
    before = memory_gb_s(cores)
    result = await campaign.run(campaign.Settings(effort=QUICK), tell)
    pace = Pace(before, memory_gb_s(cores))
    found = result.fit
    tell(f"memory: {pace.before:.1f} GB/s before the profile, {pace.after:.1f} after")
    tell(f"profile: step times within {found.median_error:.1%} in the median, {found.worst_error:.1%} at worst")
    bare = fit(result.observations, without_host(found.profile))
    return Profiles(profile=found.profile, bare=bare.profile, memory_gb_s=pace.mean)


def given(name_or_path: str) -> Profiles:
    """A profile of this machine that was measured before; without its host the same rates are taken."""
    profile = load_profile(name_or_path)
    return Profiles(profile=profile, bare=without_host(profile))


def without_host(profile: HardwareProfile) -> HardwareProfile:
    """Return ``profile`` as if nothing shared its cores but instances of a role."""
    figures = {key: figure for key, figure in profile.figures.items() if not key.startswith("host.")}
    return replace(profile, host=Host(), figures=figures)


def kept_in(path: Path) -> Profiles:
    """Return those that a result file was made with.

    Raises:
        ConfigError: it does not say.
    """
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if "profile_toml" not in result:
        raise ConfigError("--hardware", f"{path} does not have its profile", "name one that was measured there")
    return Profiles(
        profile=parse(result["profile_toml"], where=f"{path}: profile_toml"),
        bare=parse(result["bare_profile_toml"], where=f"{path}: bare_profile_toml"),
        memory_gb_s=result.get("profile_memory_gb_s", 0.0),
    )
