"""Every config of every family in clusters: what they generate is what ``transformers`` generates, whoever gates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.e2e.cases import spec_of
from tests.e2e.checkpoints import FAMILIES, QUANTISED
from tests.e2e.client import Client
from tests.e2e.cluster import Cluster, Spec
from tests.e2e.lab import Lab
from tests.e2e.test_tokens import check_tokens

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

#: What `make test` covers: a shared expert, gated by experts; sinks, windows and biases, in MXFP4; latents and groups.
FAST = (
    ("glm4_moe-query_key_norms", (1, 2), "expert"),
    ("gpt_oss-mxfp4", (1, 1), "attention"),
    ("deepseek_v3-groups", (1, 1), "attention"),
)
SLOW = [
    (name, topology, gate)
    for name in (*FAMILIES, *QUANTISED)
    for topology, gate in (((1, 1), "attention"), ((2, 3), "expert"))
]
CASES = [
    pytest.param(case, id=f"{case[0]}-{case[1][0]}A{case[1][1]}E-{case[2]}", marks=() if fast else pytest.mark.slow)
    for case in dict.fromkeys((*FAST, *SLOW))
    for fast in [case in FAST]
]


@pytest.mark.parametrize("case", CASES)
async def test_tokens_are_those_of_transformers(
    case: tuple[str, tuple[int, int], str],
    lab: Lab,
    connect: Callable[[Cluster], Client],
    own_cluster: Callable[[Spec], Cluster],
) -> None:
    name, topology, gate = case
    # So few that some request is put back, however late a busy machine lets the others come in.
    spec = spec_of(lab.model_dir(name), topology, JANUS_ATTENTION_KV_BLOCKS="30")
    cluster = own_cluster(replace(spec, arguments=("--gate", gate)))
    await check_tokens(cluster, connect(cluster), lab.oracle(name))
