"""Scale, drain and restart: what is asked of launcher and controller in which order, and what happens when it fails."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from janus.cluster.groups import one_error
from janus.cluster.hung import HungWatch
from janus.cluster.instances import Started
from janus.cluster.operations import lacking
from janus.cluster.sizes import Sizes
from janus.errors import ConfigError, JanusError, LaunchError
from tests.cli.cluster_fakes import FakeCluster, report_of


async def test_what_is_added_starts_before_what_leaves_stops() -> None:
    cluster = await FakeCluster(attention=3, experts=1).started()
    await cluster.operations.scale(Sizes(gateways=1, attention=1, experts=3))
    assert cluster.calls == [
        "expect 1G 3A 3E",
        "start expert-1",
        "start expert-2",
        "expect 1G 1A 3E",
        "stop attention-2",
        "stop attention-1",
    ]
    assert cluster.told[0] == "scaling attention 3 -> 1, experts 1 -> 3"
    assert cluster.fleet.names() == ["attention-0", "controller-0", "expert-0", "expert-1", "expert-2", "gateway-0"]


async def test_a_new_instance_is_just_like_its_siblings_and_finds_the_controller() -> None:
    cluster = await FakeCluster(experts=2).started()
    await cluster.operations.scale(Sizes(gateways=1, attention=1, experts=3))
    old, new = cluster.launcher.specs["expert-0"], cluster.launcher.specs["expert-2"]
    assert new == old.sibling("expert-2")
    assert new.arguments["controller"] == f"127.0.0.1:{cluster.fleet.controller.port}"


async def test_the_same_numbers_are_nothing_to_do() -> None:
    cluster = await FakeCluster().started()
    await cluster.operations.scale(cluster.operations.sizes)
    assert cluster.calls == []


async def test_an_instance_that_does_not_start_leaves_the_cluster_as_it_was() -> None:
    cluster = await FakeCluster(experts=1).started()
    cluster.launcher.broken = {"expert-2"}
    before = cluster.operations.sizes
    with pytest.raises(LaunchError, match="expert-2: ended with status 1"), one_error():
        await cluster.operations.scale(Sizes(gateways=1, attention=1, experts=3))
    assert cluster.calls[0] == "expect 1G 1A 3E"
    assert cluster.calls[-2:] == ["expect 1G 1A 1E", "stop expert-1"]
    assert cluster.operations.sizes == before
    assert "expert-1" not in cluster.fleet.names()
    cluster.launcher.broken = set()
    await cluster.operations.scale(Sizes(gateways=1, attention=1, experts=3))
    assert {"expert-1", "expert-2"} <= set(cluster.fleet.names())


async def test_an_instance_that_does_not_become_ready_is_named_and_leaves_again() -> None:
    cluster = await FakeCluster(experts=1).started()
    cluster.controller.joining = {"expert-1"}
    with pytest.raises(JanusError, match=r"not ready after 0\.3 s: expert-1 is joining"):
        await cluster.operations.scale(Sizes(gateways=1, attention=1, experts=2))
    assert cluster.calls[-2:] == ["expect 1G 1A 1E", "stop expert-1"]


async def test_a_controller_that_refuses_stops_a_scaling_before_anything_is_done() -> None:
    cluster = await FakeCluster(experts=2).started()
    cluster.controller.refuses = JanusError("one instance does not hold every expert")
    with pytest.raises(JanusError, match="does not hold"):
        await cluster.operations.scale(Sizes(gateways=1, attention=1, experts=1))
    assert cluster.calls == []
    assert cluster.operations.sizes.experts == 2


async def test_a_restarted_controller_expects_the_numbers_of_now_and_listens_where_it_did() -> None:
    cluster = await FakeCluster(experts=1).started()
    before = cluster.fleet.controller
    await cluster.operations.scale(Sizes(gateways=1, attention=2, experts=1))
    await cluster.operations.restart(["controller-0"], in_place=False)
    arguments = cluster.launcher.specs["controller-0"].arguments
    assert (arguments["expect_gateways"], arguments["expect_attention"], arguments["expect_experts"]) == (1, 2, 1)
    now = cluster.fleet.controller
    assert (now.port, now.ops_port) == (before.port, before.ops_port)
    assert now.pid != before.pid


async def test_a_drained_instance_is_not_expected_and_its_index_is_free_again() -> None:
    cluster = await FakeCluster(experts=3).started()
    await cluster.operations.drain("expert-1")
    assert cluster.calls == ["expect 1G 1A 2E", "stop expert-1"]
    assert cluster.fleet.names("expert") == ["expert-0", "expert-2"]
    assert cluster.fleet.drained() == ["expert-1"]
    await cluster.operations.restart(["expert-1"], in_place=False)
    assert cluster.calls[2:] == ["expect 1G 1A 3E", "start expert-1"]
    assert cluster.fleet.drained() == []
    await cluster.operations.drain("expert-0")
    await cluster.operations.scale(Sizes(gateways=1, attention=1, experts=3))
    assert cluster.fleet.names("expert") == ["expert-0", "expert-1", "expert-2"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("expert-7", "there is no instance 'expert-7'; there are: attention-0"),
        ("controller-0", "keeps the registry of the cluster; replace it with janus restart controller-0"),
        ("gateway-0", r"is the only gateway instance that runs; add another one first \(janus scale --gateways \+1\)"),
    ],
)
async def test_what_cannot_be_drained_is_refused_with_a_remedy(name: str, words: str) -> None:
    cluster = await FakeCluster(experts=2).started()
    with pytest.raises(ConfigError, match=words):
        await cluster.operations.drain(name)
    assert cluster.calls == []


async def test_a_rolling_restart_goes_one_by_one_and_the_only_one_gets_a_second() -> None:
    cluster = await FakeCluster(attention=1, experts=2).started()
    await cluster.operations.restart([], in_place=False)
    assert cluster.calls == [
        *("stop expert-0", "start expert-0", "stop expert-1", "start expert-1"),
        *("expect 1G 2A 2E", "start attention-1", "stop attention-0", "start attention-0"),
        *("expect 1G 1A 2E", "stop attention-1"),
        *("expect 2G 1A 2E", "start gateway-1", "stop gateway-0", "start gateway-0"),
        *("expect 1G 1A 2E", "stop gateway-1"),
        *("stop controller-0", "start controller-0"),
    ]


async def test_what_holds_experts_that_have_no_other_place_is_not_taken_away() -> None:
    cluster = await FakeCluster(experts=3).started()
    cluster.controller.num_experts, cluster.controller.slots = 64, 32
    with pytest.raises(ConfigError, match="--experts: expert-0 would hold 32 of the 64 experts of a MoE layer"):
        await cluster.operations.scale(Sizes(gateways=1, attention=1, experts=1))
    assert cluster.calls == []
    await cluster.operations.drain("expert-0")
    cluster.calls.clear()
    with pytest.raises(ConfigError, match="INSTANCE: expert-2 would hold 32 of the 64"):
        await cluster.operations.drain("expert-1")
    assert cluster.calls == []
    await cluster.operations.restart(["expert-1"], in_place=False)
    assert cluster.calls == [
        *("expect 1G 1A 3E", "start expert-0", "stop expert-1", "start expert-1"),
        *("expect 1G 1A 2E", "stop expert-2"),
    ]


async def test_a_restart_in_place_adds_nothing() -> None:
    cluster = await FakeCluster().started()
    await cluster.operations.restart(["expert-0", "gateway-0"], in_place=True)
    assert cluster.calls == ["stop expert-0", "start expert-0", "stop gateway-0", "start gateway-0"]


async def test_a_restart_that_fails_touches_nothing_more_and_what_serves_stays() -> None:
    cluster = await FakeCluster(experts=1).started()
    cluster.launcher.broken = {"expert-0"}
    with pytest.raises(LaunchError, match="expert-0"):
        await cluster.operations.restart([], in_place=False)
    assert cluster.calls == ["expect 1G 1A 2E", "start expert-1", "stop expert-0", "start expert-0"]
    assert cluster.fleet.started("expert-1") is not None


async def test_a_stop_ends_the_attempts_to_bring_an_instance_back() -> None:
    cluster = await FakeCluster(experts=2).started()
    cluster.launcher.broken = {"expert-1"}
    async with asyncio.TaskGroup() as group:
        cluster.fleet.revive(cluster.killed("expert-1"), group)
        await cluster.calls.wait_for("start expert-1")
        await cluster.operations.scale(Sizes(gateways=1, attention=1, experts=1))
    assert cluster.calls == ["start expert-1", "expect 1G 1A 1E"]
    assert cluster.fleet.names("expert") == ["expert-0"]


async def test_the_end_of_a_process_that_was_replaced_meanwhile_starts_nothing() -> None:
    cluster = await FakeCluster(experts=2).started()
    async with asyncio.TaskGroup() as group:
        late = cluster.killed("expert-1")  # at the moment in which it is restarted by hand
        await cluster.operations.restart(["expert-1"], in_place=False)
        now = cluster.fleet.started("expert-1")
        cluster.fleet.revive(late, group)
    assert cluster.calls == ["start expert-1"]
    assert cluster.fleet.started("expert-1") == now


async def test_an_instance_that_ends_before_its_start_is_known_has_not_started() -> None:
    cluster = await FakeCluster(experts=1).started()
    cluster.launcher.ends = {"expert-1"}

    async def watch() -> None:
        async with asyncio.TaskGroup() as group:
            cluster.fleet.revive(await cluster.launcher.watch(), group)

    watching = asyncio.create_task(watch(), name="watching")
    with pytest.raises(LaunchError, match="expert-1: ended as soon as it listened"), one_error():
        await cluster.operations.scale(Sizes(gateways=1, attention=1, experts=2))
    await watching
    assert cluster.fleet.names("expert") == ["expert-0"]
    assert cluster.calls.count("start expert-1") == 1


SIZES = Sizes(gateways=1, attention=2, experts=3)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"experts": "5"}, (1, 2, 5)),
        ({"experts": 1}, (1, 2, 1)),
        ({"experts": "+2", "attention": "-1"}, (1, 1, 5)),
        ({"gateways": "+1", "experts": None}, (2, 2, 3)),
    ],
)
def test_numbers_as_users_write_them(wanted: dict[str, str | int | None], expected: tuple[int, int, int]) -> None:
    sizes = SIZES.changed(wanted)
    assert (sizes.gateways, sizes.attention, sizes.experts) == expected


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"experts": "0"}, "--experts: 0 is too few: without one, no request can be served; keep at least 1"),
        ({"attention": "-2"}, "--attention: 2 -2 is 0: without one"),
        ({"gateways": 0}, "--gateways: 0 is too few: without one, nobody can connect"),
        ({"experts": "three"}, "--experts: 'three' is not a number of instances; give N"),
        ({"experts": "1.5"}, "is not a number of instances"),
        ({"experts": ""}, "is not a number of instances"),
        ({"experts": "1025"}, "--experts: 1025 is out of range; use at most 1024"),
    ],
)
def test_a_wrong_number_is_refused_by_name(wanted: dict[str, str | int | None], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        SIZES.changed(wanted)
    assert words in str(caught.value)


def test_a_monolithic_cluster_has_no_experts_to_scale() -> None:
    with pytest.raises(ConfigError, match="monolithic"):
        Sizes(gateways=1, attention=1, experts=0).changed({"experts": "+1"})


def started(name: str, port: int) -> Started:
    role = "expert" if name.startswith("expert") else "gateway"
    return Started(role=role, name=name, pid=port, port=port, ops_port=port + 1, log=Path("/l"))  # type: ignore[arg-type]


def test_what_an_instance_lacks_is_said_and_a_predecessor_does_not_count() -> None:
    expert = started("expert-0", 5)
    assert lacking(report_of([expert]), "expert-0", expert) == ""
    assert lacking(report_of([expert]), "expert-0", started("expert-0", 7)) == "expert-0 has not registered"
    assert lacking(report_of([]), "expert-0", expert) == "expert-0 has not registered"
    assert lacking(report_of([expert]), "expert-0", None) == "expert-0 does not run"
    assert lacking(report_of([expert], joining={"expert-0"}), "expert-0", expert) == "expert-0 is joining"


def test_an_instance_hangs_when_it_stays_failed_and_not_when_another_process_took_its_place() -> None:
    watch = HungWatch(5.0)
    old, new = started("expert-0", 5), started("expert-0", 7)
    failed = report_of([old], failed={"expert-0"})
    assert watch.hung(failed, [old], now=10.0) == []
    assert watch.hung(failed, [old], now=14.9) == []
    assert watch.hung(failed, [old], now=15.0) == [old]
    assert watch.hung(failed, [new], now=16.0) == []
    assert watch.hung(report_of([old]), [old], now=17.0) == []
    assert watch.hung(failed, [old], now=18.0) == [], "it recovered in between"


def test_a_controller_hangs_when_it_is_silent_in_a_row() -> None:
    watch, controller = HungWatch(5.0), started("controller-0", 5)
    assert not watch.silent(controller, now=0.0)
    assert not watch.silent(controller, now=9.9)
    assert watch.silent(controller, now=10.0)
    watch.hung(report_of([]), [controller], now=11.0)
    assert not watch.silent(controller, now=12.0)
