"""Replicas and the choice among them change who computes, never what comes out."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.e2e.cases import check, prompts_for, spec_of
from tests.e2e.client import Client
from tests.e2e.cluster import Cluster, Spec
from tests.e2e.hostile import until_async
from tests.e2e.lab import Lab

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

#: Of 8 experts on 3 instances; an even share would be 3.
_SLOTS = 6


@pytest.mark.parametrize(
    "scheduler",
    [
        "aebs",
        pytest.param("token-balanced", marks=pytest.mark.slow),
        pytest.param("aebs-greedy", marks=pytest.mark.slow),
        pytest.param("random", marks=pytest.mark.slow),
        pytest.param("static", marks=pytest.mark.slow),
    ],
)
async def test_tokens_do_not_depend_on_who_serves_an_expert(
    scheduler: str,
    lab: Lab,
    own_cluster: Callable[[Spec], Cluster],
    connect: Callable[[Cluster], Client],
    tmp_path: Path,
) -> None:
    oracle = lab.oracle("grouped")
    layers, experts = oracle.model.config.num_hidden_layers, oracle.model.config.num_experts
    counts = tmp_path / "activations.json"
    counts.write_text(json.dumps({"activations": [[1 + expert for expert in range(experts)]] * layers}))
    plain = spec_of(lab.model_dir("grouped"), (1, 3))
    arguments = ("--scheduler", scheduler, "--slots-per-instance", str(_SLOTS), "--activations", str(counts))
    cluster = own_cluster(replace(plain, arguments=arguments))
    client, expected = connect(cluster), prompts_for(oracle)

    placement = cluster.status().view.placement
    assert placement is not None
    for layer in placement.slots:
        held = [expert for slots in layer for expert in slots if expert >= 0]
        assert len(held) == 3 * _SLOTS
        assert held.count(experts - 1) >= held.count(0), "the busiest expert has the most replicas"

    answers = await asyncio.gather(*(client.complete(each.prompt, logprobs=20) for each in expected))
    for answer, each in zip(answers, expected, strict=True):
        check(answer, each, oracle)

    judged, proven = (cluster.metrics("attention", f"janus_schedules_{word}_total") for word in ("judged", "proven"))
    assert (judged > 0) == (scheduler == "aebs")
    assert judged == proven
    assert cluster.metric("attention-0", "janus_schedule_seconds_total") > 0

    async def reported() -> bool:
        heartbeat = cluster.status().heartbeats["attention-0"]
        return heartbeat.scheduler == scheduler and heartbeat.proven_share == (1.0 if judged else None)

    await until_async(reported, "the controller knows how attention-0 schedules")
