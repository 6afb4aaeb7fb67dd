"""Whichever way activations reach the experts, and whoever gates: the tokens are those of ``transformers``."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.e2e.cases import prompts_for, spec_of
from tests.e2e.client import Client
from tests.e2e.cluster import Cluster, Spec
from tests.e2e.hostile import logged
from tests.e2e.lab import Lab
from tests.e2e.test_faults import PATIENT, SLOW_DRAIN, streaming, whole_again
from tests.e2e.test_tokens import check_tokens

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

#: What `make test` covers comes first; each needs a cluster of its own.
CASES = [
    pytest.param("two-phase", "expert", (2, 3), id="two-phase-expert-2A3E"),
    *(
        pytest.param(way, gate, (m, n), id=f"{way}-{gate}-{m}A{n}E", marks=pytest.mark.slow)
        for way, gate, (m, n) in (
            ("two-phase", "attention", (2, 3)),
            ("two-phase", "attention", (3, 2)),
            ("two-phase", "expert", (3, 2)),
            ("aggregated", "attention", (2, 3)),
            ("aggregated", "expert", (3, 2)),
            ("direct", "expert", (2, 3)),
            ("auto", "attention", (3, 2)),
        )
    ),
]
FAULTS = ["attention", "expert"]


@pytest.mark.parametrize(("way", "gate", "topology"), CASES)
async def test_tokens_do_not_depend_on_the_way(
    way: str,
    gate: str,
    topology: tuple[int, int],
    *,
    lab: Lab,
    connect: Callable[[Cluster], Client],
    own_cluster: Callable[[Spec], Cluster],
) -> None:
    spec = spec_of(lab.model_dir("janus-tiny"), topology)
    cluster = own_cluster(replace(spec, arguments=("--exchange", way, "--gate", gate)))
    await check_tokens(cluster, connect(cluster), lab.oracle("janus-tiny"))
    went(cluster, way)


def went(cluster: Cluster, way: str) -> None:
    """Frames really were gathered, shared out, or neither."""
    handed_in = cluster.metrics("attention", "janus_exchange_hand_ins_total")
    relayed = cluster.metrics("expert", "janus_expert_relayed_total")
    if way == "direct":
        assert handed_in == relayed == 0
    if way in ("aggregated", "two-phase"):
        assert handed_in > 0, "no instance posted for another"
    if way == "two-phase":
        assert relayed > 0, "no dispatch was shared among the node's experts"


@pytest.mark.slow  # tests/chaos kills members in whatever way is the fastest, which is two-phase where it matters
@pytest.mark.parametrize("gate", FAULTS)
async def test_members_of_a_node_that_are_killed_cost_time_and_no_token(
    gate: str, lab: Lab, connect: Callable[[Cluster], Client], own_cluster: Callable[[Spec], Cluster]
) -> None:
    way = ("--exchange", "two-phase", "--gate", gate)
    spec = Spec(model=lab.model_dir("grouped"), attention=2, experts=2, environment=PATIENT)
    cluster = own_cluster(replace(spec, arguments=(*SLOW_DRAIN, *way)))
    client, expected = connect(cluster), prompts_for(lab.oracle("grouped"))
    async with streaming(client, expected) as streams:
        killed = cluster.send("expert-1", signal.SIGKILL)
        await streams.all_right()
    await logged(cluster, "expert-0", "link_down", "peer=expert-1")
    await whole_again(cluster, "expert-1", killed)

    resumed = cluster.metrics("gateway", "janus_gateway_resubmitted_total")
    async with streaming(client, expected) as streams:
        killed = cluster.send("attention-0", signal.SIGKILL)
        await streams.all_right()
    assert cluster.metrics("gateway", "janus_gateway_resubmitted_total") > resumed
    await logged(cluster, "attention-1", "link_down", "peer=attention-0")
    await whole_again(cluster, "attention-0", killed)

    # Who came back takes part again.
    before = cluster.metric("attention-0", "janus_exchange_hand_ins_total")
    async with streaming(client, expected) as streams:
        await streams.all_right()
    assert cluster.metric("attention-0", "janus_exchange_hand_ins_total") > before
    went(cluster, "two-phase")
    cluster.wait_idle()
