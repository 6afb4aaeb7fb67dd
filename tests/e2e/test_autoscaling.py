"""A cluster scales itself: from one of each under load to more, and back, and no client notices."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from tests.e2e.cases import prompts_for
from tests.e2e.client import Answer, Client, Prompt
from tests.e2e.cluster import Cluster, Spec
from tests.e2e.lab import Lab
from tests.e2e.test_faults import PATIENT, SLOW_DRAIN
from tests.e2e.test_scaling import janus
from tests.e2e.waiting import LIMIT_S, until_async

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

#: An SLO that no machine holds, so that more are wanted as long as there is load; and no more than there is room for.
ARGUMENTS = (
    *("--autoscale", "on", "--slo-tpot", "10us", "--max-attention", "2", "--max-experts", "2"),
    *("--scale-interval", "2", "--scale-look-back", "2"),
)


@contextlib.asynccontextmanager
async def busy(client: Client, prompt: Prompt) -> AsyncIterator[list[Answer]]:
    """Six streams, one after the other for as long as the block lasts; yields the answers so far."""
    over, answers = asyncio.Event(), list[Answer]()

    async def stream() -> None:
        while not over.is_set():
            answers.append(await client.stream(prompt, max_tokens=40))

    async with asyncio.TaskGroup() as group:
        for number in range(6):
            group.create_task(stream(), name=f"stream-{number}")
        try:
            yield answers
        finally:
            over.set()


async def scaling(cluster: Cluster) -> dict[str, Any]:
    async with httpx.AsyncClient(timeout=LIMIT_S, trust_env=False) as client:
        found: dict[str, Any] = (await client.get(f"{cluster.state().controller_ops}/scaling")).json()
        return found


async def test_the_cluster_grows_with_the_load_and_shrinks_again_and_says_why(
    lab: Lab, own_cluster: Callable[[Spec], Cluster], connect: Callable[[Cluster], Client]
) -> None:
    cluster = own_cluster(
        Spec(model=lab.model_dir("grouped"), environment=PATIENT, arguments=(*SLOW_DRAIN, *ARGUMENTS))
    )

    async def there(attention: int, experts: int) -> bool:
        numbers = len(cluster.names("attention")), len(cluster.names("expert"))
        return numbers == (attention, experts) and cluster.whole()

    expected = prompts_for(lab.oracle("grouped"))[0]
    client = connect(cluster)
    async with busy(client, expected.prompt) as answers:
        await until_async(lambda: there(2, 2), "two of each serve", within_s=2 * LIMIT_S)
    assert {answer.status for answer in answers} == {200}
    assert not [answer.error for answer in answers if answer.error]
    await until_async(lambda: there(1, 1), "one of each is left", within_s=2 * LIMIT_S)
    report = await scaling(cluster)
    answer = await client.complete(expected.prompt)
    assert (answer.status, answer.text) == (200, expected.text)

    changes = [decision for decision in report["decisions"] if decision["present"] != decision["wanted"]]
    grown = [decision for decision in changes if decision["reason"] != "surplus"]
    assert {decision["reason"] for decision in grown} <= {"slo", "load"}
    assert "TPOT" in grown[0]["why"]
    assert "exceeds the SLO of 0.01 ms" in grown[0]["why"]
    assert grown[0]["seen"]["tpot_samples"] > 0
    assert changes[-1]["reason"] == "surplus"
    assert changes[-1]["wanted"] == {"attention": 1, "experts": 1}
    assert report["backend"] == "janus up"
    log = cluster.log("controller-0")
    assert "scaling_decided" in log
    assert "scaling_failed" not in log
    assert "autoscaler: " in await janus(cluster, "status")
    assert cluster.metric("controller-0", "janus_autoscaler_decisions_total") >= len(changes)
