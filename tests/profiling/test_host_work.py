"""What gateway and clients take is found from bursts, and told apart from what instances take."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from janus.core.exchange_cost import LinkCost
from janus.core.planning.host import Host
from janus.errors import ConfigError
from janus.profiles import parse, to_toml
from janus.profiling.fit import fit
from janus.profiling.host_work import HostWork, fit_host
from janus.profiling.machine import Conditions, last_level_cache_bytes
from janus.profiling.template import template
from tests.profiling import planted

HOST = Host(
    cores=4,
    gateway_request_s=8e-4,
    gateway_message_s=2.5e-4,
    gateway_token_s=4e-5,
    client_request_s=2e-4,
    client_token_s=1.5e-5,
)
CONDITIONS = Conditions(cpu="made up", cores=4, memory_bytes=16_000_000_000, dtype="float32", threads=0)


def bursts(noise: float, seed: int = 1) -> list[HostWork]:
    """What bursts of streams and tokens take on ``HOST``."""
    draw, found = random.Random(seed), []
    for streams, tokens in [*product((1, 16, 48), (16, 96))] * 3:
        count = streams * tokens
        gateway = streams * HOST.gateway_request_s + tokens * HOST.gateway_message_s + count * HOST.gateway_token_s
        client = streams * HOST.client_request_s + count * HOST.client_token_s
        found.append(
            HostWork(
                requests=streams,
                messages=tokens,
                tokens=count,
                gateway_s=gateway * (1 + draw.gauss(0, noise)),
                client_s=client * (1 + draw.gauss(0, noise)),
            )
        )
    return found


def test_without_noise_the_host_is_found() -> None:
    found, figures = fit_host(4, bursts(0.0))
    assert found.cores == 4
    for name in ("gateway_request_s", "gateway_message_s", "gateway_token_s", "client_request_s", "client_token_s"):
        assert getattr(found, name) == pytest.approx(getattr(HOST, name), rel=1e-3)
        assert figures[f"host.{name}"].value == getattr(found, name)


def test_the_cache_is_the_machine_s() -> None:
    found, figures = fit_host(4, bursts(0.0), cache_bytes=32 << 20)
    assert found.cache_bytes == 32 << 20
    assert figures["host.cache_bytes"].source == "the machine"


def test_the_last_level_is_counted_once_for_each_part(tmp_path: Path) -> None:
    """Two parts of 16 MiB for two cores each, and a level below them."""
    for cpu in range(4):
        for index, level, size, shared in ((0, 1, "32K", f"{cpu}"), (3, 3, "16384K", "0-1" if cpu < 2 else "2-3")):
            folder = tmp_path / f"cpu{cpu}" / "cache" / f"index{index}"
            folder.mkdir(parents=True)
            for name, value in (("level", level), ("size", size), ("shared_cpu_list", shared)):
                (folder / name).write_text(f"{value}\n")
    assert last_level_cache_bytes(tmp_path) == 32 << 20
    assert last_level_cache_bytes(tmp_path / "nowhere") == 0
    (tmp_path / "cpu0" / "cache" / "index3" / "size").write_text("large\n")
    assert last_level_cache_bytes(tmp_path) == 0


def test_with_noise_most_intervals_cover_it() -> None:
    covered = []
    for seed in range(6):
        _, figures = fit_host(4, bursts(0.05, seed))
        for key, figure in figures.items():
            assert figure.low is not None and figure.high is not None
            covered.append(figure.low <= getattr(HOST, key.removeprefix("host.")) <= figure.high)
    assert sum(covered) >= 0.8 * len(covered)


def test_what_was_not_counted_has_no_figure() -> None:
    found, figures = fit_host(4, [replace(each, requests=0) for each in bursts(0.0)])
    assert found.gateway_request_s == found.client_request_s == 0
    assert sorted(figures) == ["host.client_token_s", "host.gateway_message_s", "host.gateway_token_s"]


def test_nothing_seen_is_no_host_and_too_little_is_refused() -> None:
    assert fit_host(4, []) == (Host(), {})
    with pytest.raises(ConfigError, match="numbers for"):
        fit_host(4, bursts(0.0)[:2])


def test_the_waiting_of_a_host_is_not_fitted_as_the_instances_own_time() -> None:
    """Steps that wait for the gateway's work lead to the same rates as steps that do not."""
    device = replace(planted.PLANTED, shared_cores=1)
    machine = replace(planted.profile(device), host=HOST)
    unknown = replace(device, weight_bytes_s=1.0, kv_bytes_s=1.0, flops_s=1.0)
    nowhere = replace(planted.profile(unknown, LinkCost(message_s=0.0, latency_s=0.0, byte_s=0.0)), host=HOST)
    seen = planted.observe(machine, random.Random(1), noise=0.0)
    assert any(each.predicted(machine).waiting_s > 0 for each in seen)
    found = fit(seen, nowhere)
    assert found.worst_error < 1e-3
    for name in ("weight_bytes_s", "step_s", "token_s"):
        assert getattr(found.profile.device(), name) == pytest.approx(getattr(device, name), rel=1e-2)


def test_a_profile_with_its_host_is_written_and_read() -> None:
    profile = template(CONDITIONS, [1e9, 1.1e9, 1.2e9], {"date": "2026-11-22"}, host_work=bursts(0.05))
    assert profile.host.cores == 4
    assert parse(to_toml(profile), where="file") == profile
    assert template(CONDITIONS, [1e9], {}).host == Host()
