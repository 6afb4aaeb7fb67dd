"""The file of observations: what is written reads the same, and only what was measured alike is added."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from janus.core.exchange_cost import LinkCost
from janus.errors import ConfigError
from janus.profiling import record
from janus.profiling.campaign import Result, Settings
from janus.profiling.fit import fit
from janus.profiling.host_work import HostWork
from janus.profiling.report import goodness
from tests.profiling import planted


@pytest.fixture(scope="module")
def result() -> Result:
    machine = planted.profile()
    observations = planted.observe(machine, random.Random(4), noise=0.03)
    template = planted.profile(planted.PLANTED, LinkCost(message_s=0.0, latency_s=0.0, byte_s=0.0))
    return Result(
        conditions=Settings().conditions(),
        fit=fit(observations, template),
        observations=tuple(observations),
        load_rates=(1e9, 1.1e9),
        host_work=(HostWork(requests=4, messages=32, tokens=128, gateway_s=0.02, client_s=0.004),),
    )


def test_what_is_written_reads_the_same(result: Result, tmp_path: Path) -> None:
    record.write(result, tmp_path / "seen.json")
    found = record.read(tmp_path / "seen.json", here=Settings().conditions())
    assert tuple(seen.observed for seen in found.observations) == result.observations
    assert tuple(found.load_rates) == result.load_rates
    assert tuple(found.host_work) == result.host_work
    assert [seen.error for seen in found.observations] == pytest.approx(result.fit.errors)
    first = found.observations[0]
    assert first.predicted["total_s"] / first.total_s - 1 == pytest.approx(first.error)


def test_what_was_measured_otherwise_is_not_added(result: Result, tmp_path: Path) -> None:
    record.write(result, tmp_path / "seen.json")
    with pytest.raises(ConfigError, match=r"measured with dtype 'float32', and this is 'bfloat16'"):
        record.read(tmp_path / "seen.json", here=Settings(dtype="bfloat16").conditions())


@pytest.mark.parametrize("text", ["", "{}", '{"measured": 1}'])
def test_another_file_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "seen.json").write_text(text)
    with pytest.raises(ConfigError, match="name a file of --observations"):
        record.read(tmp_path / "seen.json", here=None)


def test_a_file_that_is_not_there_is_named(result: Result, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.json"):
        record.read(tmp_path / "missing.json", here=None)
    with pytest.raises(ConfigError, match="--observations"):
        record.write(result, tmp_path / "no" / "seen.json")


def test_goodness_is_told_in_a_line(result: Result) -> None:
    line = goodness(result)
    assert line.startswith("52 operating points; step times predicted within ")
    assert f"{result.fit.median_error:.1%} (median)" in line
