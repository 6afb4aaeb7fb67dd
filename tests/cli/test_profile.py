"""``janus profile`` without a cluster: what was measured before is fitted, written and shown."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from janus.core.exchange_cost import LinkCost
from janus.errors import ConfigError
from janus.profiles import load_profile
from janus.profiling import record
from janus.profiling.campaign import Result
from janus.profiling.fit import fit
from janus.profiling.machine import Conditions
from janus_cli.profile import ProfileOptions, profile
from tests.profiling import planted

ELSEWHERE = Conditions(cpu="A CPU", cores=8, memory_bytes=64 << 30, dtype="float32", threads=4)


@pytest.fixture
def seen(tmp_path: Path) -> Path:
    """Observations of a planted machine, beside which others used a core."""
    machine = replace(planted.profile(), measured={"command": "janus profile", "commit": "feed", "date": "2026-01-01"})
    observations = [replace(each, others_cores=1.0) for each in planted.observe(machine, random.Random(4), noise=0.03)]
    unfitted = replace(machine, intra=LinkCost(message_s=0.0, latency_s=0.0, byte_s=0.0))
    result = Result(
        conditions=ELSEWHERE,
        fit=fit(observations, unfitted),
        observations=tuple(observations),
        load_rates=(1e9, 1.1e9, 1.2e9),
    )
    record.write(result, tmp_path / "seen.json")
    return tmp_path / "seen.json"


def test_observations_are_fitted_again(seen: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, again = seen.parent / "profile.toml", seen.parent / "again.json"
    assert profile(ProfileOptions(refit=True, add=seen, out=out, observations=again, name="eight")) == 0
    read = load_profile(out)
    assert (read.name, read.kind) == ("eight", "measured")
    assert read.about.startswith("Instances of --threads 4 on A CPU, 8 cores, 64.0 GiB")
    assert {"commit": "feed", "date": "2026-01-01"}.items() <= read.measured.items()
    # Two such instances fit on eight cores, as was planted.
    assert read.device("cpu-4").shared_cores == planted.PLANTED.shared_cores
    assert read.device("cpu-4").kv_bytes_s == pytest.approx(planted.PLANTED.kv_bytes_s, rel=0.1)
    shown = capsys.readouterr().out
    for word in (
        "cpu-4.weight_bytes_s",
        "GB/s to",
        "52 operating points",
        "R²",
        "others kept 1.0 cores busy",
        str(out),
    ):
        assert word in " ".join(shown.split()) or word in shown
    assert record.read(again, here=ELSEWHERE).conditions == ELSEWHERE


def test_there_must_be_something_to_fit_again() -> None:
    with pytest.raises(ConfigError, match="with --add"):
        ProfileOptions(refit=True)


def test_what_was_measured_elsewhere_is_not_added(seen: Path) -> None:
    with pytest.raises(ConfigError, match="was measured with cpu 'A CPU'"):
        profile(ProfileOptions(add=seen, out=seen.parent / "profile.toml"))


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--out"):
        profile(ProfileOptions(out=tmp_path / "no" / "profile.toml"))
