"""How many slots of each host are used."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from janus.core.placing.contract import Host, PlacingRequest
from janus.core.placing.quotas import quotas
from janus.errors import ConfigError
from tests.core.placing.drawn import requests


def request(experts: int, *hosts: tuple[int, float], fill: int = 0) -> PlacingRequest:
    named = tuple(Host(name=f"expert-{i}", capacity=capacity, speed=speed) for i, (capacity, speed) in enumerate(hosts))
    return PlacingRequest(num_layers=1, num_experts=experts, hosts=named, fill=fill)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (request(16, (16, 1.0), (16, 1.0), (16, 1.0)), (6, 6, 6)),  # ceil(16 / 3) each
        (request(16, (16, 1.0), (16, 3.0)), (4, 12)),
        (request(16, (2, 1.0), (16, 1.0), (16, 1.0)), (2, 7, 7)),  # what the first lacks, the others take
        (request(4, *[(4, 1.0)] * 8), (1,) * 8),
        (request(3, (3, 100.0), (3, 1.0)), (3, 0)),
        (request(16, (16, 1.0), (16, 1.0), fill=10), (10, 10)),
        (request(16, (8, 1.0), (16, 1.0), fill=10), (8, 10)),
        (request(16, (16, 1.0), (16, 1.0), fill=3), (8, 8)),  # too few for all experts: raised
        (request(16, (5, 1.0), (16, 1.0), fill=3), (5, 11)),
        (request(4, (9, 1.0), (9, 1.0), fill=9), (4, 4)),
    ],
)
def test_quotas(asked: PlacingRequest, expected: tuple[int, ...]) -> None:
    assert quotas(asked) == expected


@settings(max_examples=200, deadline=None)
@given(asked=requests())
def test_quotas_hold_all_experts_within_every_capacity_and_no_more_than_asked_for(asked: PlacingRequest) -> None:
    found = quotas(asked)
    assert sum(found) >= asked.num_experts
    for host, used in zip(asked.hosts, found, strict=True):
        assert 0 <= used <= min(host.capacity, asked.num_experts)
    least = [min(asked.fill, host.capacity, asked.num_experts) for host in asked.hosts]
    assert all(used >= most for used, most in zip(found, least, strict=True))
    if sum(least) >= asked.num_experts:
        assert list(found) == least
    else:  # less by one level, and an expert has no slot
        raised = [u / host.speed for u, low, host in zip(found, least, asked.hosts, strict=True) if u > low]
        top = max(raised) * (1 - 1e-9)
        lower = sum(
            u - (u > low and u / host.speed >= top) for u, low, host in zip(found, least, asked.hosts, strict=True)
        )
        assert lower < asked.num_experts


def test_too_little_capacity_is_refused_with_the_numbers() -> None:
    with pytest.raises(ConfigError, match=r"2 expert instances with 3 slots .* hold 6 experts, the model has 8") as got:
        quotas(request(8, (3, 1.0), (3, 1.0)))
    assert got.value.field == "slots"
    assert "at least 4 slots" in got.value.remedy
    assert "at least 3 instances" in got.value.remedy
    with pytest.raises(ConfigError, match=r"with 2 to 4 slots per layer hold 6 experts"):
        quotas(request(8, (2, 1.0), (4, 1.0)))
    with pytest.raises(ConfigError, match="no expert instance"):
        quotas(request(8))


@pytest.mark.parametrize("speed", [0.0, -1.0, float("nan"), float("inf")])
def test_a_speed_that_is_none_is_refused(speed: float) -> None:
    with pytest.raises(ConfigError, match="expert-1 has the speed"):
        quotas(request(2, (2, 1.0), (2, speed)))
