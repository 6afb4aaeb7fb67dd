"""The fit of a profile: on machines that behave as a profile says, it finds that profile."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from janus.core.exchange_cost import LinkCost
from janus.core.planning.hardware import Device, Figure, HardwareProfile
from janus.core.planning.host import Host
from janus.errors import ConfigError
from janus.profiles import parse, to_toml
from janus.profiling.fit import DEVICE, HOST, LINK, fit
from tests.profiling import planted

NOWHERE = Device(
    name="cpu", memory_bytes=8e9, weight_bytes_s=1.0, kv_bytes_s=1.0, flops_s=1.0, shared_cores=2, load_bytes_s=3e8
)
TEMPLATE = replace(
    planted.profile(NOWHERE, LinkCost(message_s=0.0, latency_s=0.0, byte_s=0.0)),
    figures={"cpu.memory_bytes": Figure(value=8e9, source="the machine")},
)


def truth(machine: HardwareProfile) -> dict[str, float]:
    device = machine.device()
    planted_rates = {f"cpu.{each.name}": getattr(device, each.name) for each in DEVICE}
    return planted_rates | {f"intra.{each.name}": getattr(machine.intra, each.name) for each in LINK}


def test_without_noise_every_rate_is_found() -> None:
    machine = planted.profile()
    found = fit(planted.observe(machine, random.Random(1), noise=0.0), TEMPLATE)
    for key, value in truth(machine).items():
        assert found.profile.figures[key].value == pytest.approx(value, rel=1e-4), key
    assert found.median_error < 1e-5
    assert found.r_squared == pytest.approx(1)


def test_what_layers_find_cold_is_found_where_the_cache_is_known() -> None:
    """The layers of one model fit into the cache, those of the other do not."""
    device = replace(planted.PLANTED, shared_cores=1)
    host = Host(cores=2, gateway_message_s=2e-4, cache_bytes=32e6)
    machine = replace(planted.profile(device), host=replace(host, cold_layer_s=2.5e-4))
    seen = planted.observe(machine, random.Random(1), noise=0.0)
    template = replace(TEMPLATE, devices={"cpu": replace(NOWHERE, shared_cores=1)}, host=host)
    found = fit(seen, template)
    for each in HOST:
        assert found.profile.figures[f"host.{each.name}"].value == pytest.approx(2.5e-4, rel=1e-2)
    assert found.median_error < 1e-3
    without = fit(seen, replace(template, host=replace(host, cache_bytes=0.0)))
    assert "host.cold_layer_s" not in without.profile.figures
    assert without.median_error > 5 * found.median_error


def test_a_machine_of_another_kind_is_found_from_the_same_start() -> None:
    """A hundred times as fast in everything but messages: the start of the search does not decide."""
    fast = replace(
        planted.PLANTED,
        **{each.name: getattr(planted.PLANTED, each.name) * (100 if each.rate else 0.01) for each in DEVICE},
    )
    machine = planted.profile(fast)
    found = fit(planted.observe(machine, random.Random(1), noise=0.0), TEMPLATE)
    assert found.worst_error < 1e-3


def test_with_noise_the_intervals_cover_what_was_planted() -> None:
    machine, runs = planted.profile(), 6
    covered = dict.fromkeys(truth(machine), 0)
    for run in range(runs):
        found = fit(planted.observe(machine, random.Random(run), noise=0.04), TEMPLATE)
        assert found.median_error < 0.04
        for key, value in truth(machine).items():
            figure = found.profile.figures[key]
            assert figure.low is not None and figure.high is not None
            assert figure.low <= figure.value <= figure.high
            covered[key] += figure.low <= value <= figure.high
    assert sum(covered.values()) >= 0.85 * runs * len(covered)
    assert min(covered.values()) >= runs / 2


def test_what_is_fitted_is_a_profile_that_can_be_written_and_read() -> None:
    found = fit(planted.observe(planted.profile(), random.Random(1), noise=0.04), TEMPLATE).profile
    assert parse(to_toml(found), where="file") == found
    assert found.kind == "measured"
    assert found.inter == found.intra
    assert "taken over" in found.figures["inter.byte_s"].source
    assert found.figures["cpu.memory_bytes"].source == "the machine"
    assert found.device().shared_cores == 2
    assert found.device().load_bytes_s == 3e8


def test_a_few_points_are_not_enough() -> None:
    with pytest.raises(ConfigError, match="measure more batch sizes and contexts"):
        fit(planted.observe(planted.profile(), random.Random(1), noise=0.0)[:2], TEMPLATE)
