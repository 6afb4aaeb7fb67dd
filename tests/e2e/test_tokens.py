"""Correct to the token: what a cluster of any m:n generates is what ``transformers`` generates."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.e2e.cases import CONCURRENT, TOPOLOGIES, check, prompts_for, spec_of
from tests.e2e.checkpoints import SHAPES
from tests.e2e.client import Client
from tests.e2e.cluster import Cluster, Spec
from tests.e2e.lab import Lab
from tests.e2e.oracle import Oracle

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

#: What `make test` covers: every topology, and every model, at least once. The rest is marked slow.
#: The first two run on clusters that the tests before have left warm.
FAST = [
    *(("grouped", (2, 2)), ("biased", (3, 1))),
    ("janus-tiny", (1, 1)),
    *(("tied", (1, 3)), ("mqa", (2, 2)), ("sparse", (1, 3))),
]
ALL = FAST + [
    (name, topology) for name in ("janus-tiny", *SHAPES) for topology in TOPOLOGIES if (name, topology) not in FAST
]
CASES = [
    pytest.param(name, topology, id=f"{name}-{topology[0]}A{topology[1]}E", marks=() if fast else pytest.mark.slow)
    for name, topology in ALL
    for fast in [(name, topology) in FAST]
]


@pytest.mark.parametrize(("name", "topology"), CASES)
async def test_tokens_are_those_of_transformers(
    name: str, topology: tuple[int, int], lab: Lab, connect: Callable[[Cluster], Client]
) -> None:
    oracle = lab.oracle(name)
    cluster = lab.clusters.get(spec_of(lab.model_dir(name), topology))
    await check_tokens(cluster, connect(cluster), oracle)


@pytest.mark.parametrize("micro_batches", ["2", pytest.param("4", marks=pytest.mark.slow)])
async def test_micro_batches_change_no_token(
    micro_batches: str, lab: Lab, connect: Callable[[Cluster], Client], own_cluster: Callable[[Spec], Cluster]
) -> None:
    spec = replace(spec_of(lab.model_dir("janus-tiny"), (1, 2)), arguments=("--micro-batches", micro_batches))
    cluster = own_cluster(spec)
    await check_tokens(cluster, connect(cluster), lab.oracle("janus-tiny"))
    assert cluster.metrics("attention", "janus_overlap_seconds_total") > 0, "none computed while another was away"


async def check_tokens(cluster: Cluster, client: Client, oracle: Oracle) -> None:
    """One prompt alone, then sixteen at once that do not fit the KV cache together."""
    expected = prompts_for(oracle)
    alone = expected[CONCURRENT // 2]
    check(await client.complete(alone.prompt, logprobs=20), alone, oracle)

    before = cluster.metrics("attention", "vllm:num_preemptions_total")
    answers = await asyncio.gather(*(client.complete(each.prompt, logprobs=20) for each in expected))
    for answer, each in zip(answers, expected, strict=True):
        check(answer, each, oracle)
    assert cluster.metrics("attention", "vllm:num_preemptions_total") > before, "nothing was preempted"
    cluster.wait_idle()
