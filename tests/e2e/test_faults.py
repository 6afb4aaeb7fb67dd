"""Processes die, hang and leave while streams run: the tokens stay right, or the error says who is missing."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass

import pytest

from tests.e2e.cases import prompts_for
from tests.e2e.client import Answer, Client
from tests.e2e.cluster import Cluster, Spec
from tests.e2e.hostile import logged
from tests.e2e.lab import Lab
from tests.e2e.oracle import Expected
from tests.e2e.waiting import LIMIT_S, until, until_async

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

#: Long enough that a fault comes in the middle.
_TOKENS = 200
#: A restart loads torch; on a busy machine that takes a while.
PATIENT = (("JANUS_ATTENTION_RECOVERY_TIMEOUT", "90"), ("JANUS_GATEWAY_RECOVERY_TIMEOUT", "90"))
SLOW_DRAIN = ("--drain-timeout", "90")
_STREAMS = 8


@pytest.fixture(scope="module")
def mended(lab: Lab) -> Iterator[Cluster]:
    """A cluster whose instances are restarted; every test leaves it whole."""
    # One that is stopped here is continued, not replaced: that is tested with scaling.
    spec = Spec(
        model=lab.model_dir("grouped"),
        attention=2,
        experts=2,
        environment=PATIENT,
        arguments=(*SLOW_DRAIN, "--hung-after", "60"),
    )
    cluster = lab.clusters.launch(spec).wait_ready()
    yield cluster
    lab.clusters.close(cluster)


@dataclass
class Streams:
    """Eight long streams that have all begun, and what each must say in the end."""

    tasks: list[asyncio.Task[Answer]]
    expected: list[str]

    async def answers(self) -> list[Answer]:
        """All answers; a stream that hangs fails the test."""
        async with asyncio.timeout(3 * LIMIT_S):
            return await asyncio.gather(*self.tasks)

    async def all_right(self) -> None:
        for answer, text in zip(await self.answers(), self.expected, strict=True):
            assert (answer.error, answer.text, answer.finish_reason) == (None, text, "length")


@contextlib.asynccontextmanager
async def streaming(client: Client, expected: list[Expected]) -> AsyncIterator[Streams]:
    asked = expected[:_STREAMS]
    whole = await asyncio.gather(*(client.complete(each.prompt, max_tokens=_TOKENS) for each in asked))
    for answer, each in zip(whole, asked, strict=True):
        assert answer.text.startswith(each.text)
    begun = [asyncio.Event() for _ in asked]

    async def read(each: Expected, started: asyncio.Event) -> Answer:
        answer = Answer(status=0)
        async for event in client.events(each.prompt, answer=answer, max_tokens=_TOKENS):
            answer.take(event)
            started.set()
        return answer

    async with asyncio.timeout(4 * LIMIT_S):
        tasks = [
            asyncio.create_task(read(each, started), name=f"stream-{index}")
            for index, (each, started) in enumerate(zip(asked, begun, strict=True))
        ]
        try:
            await asyncio.gather(*(started.wait() for started in begun))
            yield Streams(tasks, [answer.text for answer in whole])
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def whole_again(cluster: Cluster, name: str, killed: int) -> None:
    """Wait until ``name`` is another process, and every instance is ready."""

    async def look() -> bool:
        return cluster.instance(name).pid != killed and cluster.whole()

    await until_async(look, f"{name} is back", within_s=3 * LIMIT_S)


Connect = Callable[[Cluster], Client]


async def test_a_killed_expert_instance_costs_time_and_no_token(mended: Cluster, connect: Connect, lab: Lab) -> None:
    client, expected = connect(mended), prompts_for(lab.oracle("grouped"))
    seen = len(mended.log("attention-0"))
    async with streaming(client, expected) as streams:
        killed = mended.send("expert-1", signal.SIGKILL)
        await streams.all_right()
    await logged(mended, "attention-0", "link_down", "peer=expert-1", before=seen)
    assert "expert-1 ended with signal SIGKILL; restarted" in mended.told()
    await whole_again(mended, "expert-1", killed)
    mended.wait_idle()


async def test_a_killed_attention_instance_costs_time_and_no_token(mended: Cluster, connect: Connect, lab: Lab) -> None:
    client, expected = connect(mended), prompts_for(lab.oracle("grouped"))
    resumed = mended.metrics("gateway", "janus_gateway_resubmitted_total")
    async with streaming(client, expected) as streams:
        killed = mended.send("attention-0", signal.SIGKILL)
        await streams.all_right()
    assert mended.metrics("gateway", "janus_gateway_resubmitted_total") > resumed
    await logged(mended, "gateway-0", "attention_instance_lost", "attention-0")
    await whole_again(mended, "attention-0", killed)
    mended.wait_idle()


async def test_a_stopped_expert_instance_is_named_and_resumes(mended: Cluster, connect: Connect, lab: Lab) -> None:
    """A process that hangs keeps its connections open: only silence tells, on links and at the controller."""
    client, expected = connect(mended), prompts_for(lab.oracle("grouped"))
    seen = len(mended.log("attention-0"))
    async with streaming(client, expected) as streams:
        pid = mended.send("expert-0", signal.SIGSTOP)
        try:
            # The link notices by itself, or the controller was faster; who is missing is said in either case.
            await logged(mended, "attention-0", "link_down", "peer=expert-0", before=seen)
            await logged(mended, "attention-0", "waiting_for_instances", "'expert-0'", before=seen)

            async def named() -> bool:
                members = mended.status().view.members
                return any(member.instance == "expert-0" and member.state == "failed" for member in members)

            await until_async(named, "the controller counts expert-0 as failed")
        finally:
            mended.send("expert-0", signal.SIGCONT)
        await streams.all_right()
    await whole_again(mended, "expert-0", killed=0)
    assert mended.instance("expert-0").pid == pid
    mended.wait_idle()


async def test_a_gateway_that_is_told_to_stop_finishes_its_streams(mended: Cluster, connect: Connect, lab: Lab) -> None:
    client, expected = connect(mended), prompts_for(lab.oracle("grouped"))
    async with streaming(client, expected) as streams:
        killed = mended.send("gateway-0", signal.SIGTERM)
        await streams.all_right()
    until(lambda: "gateway-0 ended with status 0" in mended.told(), "the gateway ends with status 0")
    await whole_again(mended, "gateway-0", killed)
    mended.wait_idle()


async def test_without_a_controller_streams_go_on_and_without_experts_requests_are_refused(
    lab: Lab, own_cluster: Callable[[Spec], Cluster], connect: Connect
) -> None:
    environment = (("JANUS_ATTENTION_RECOVERY_TIMEOUT", "1"), ("JANUS_GATEWAY_RECOVERY_TIMEOUT", "1"))
    cluster = own_cluster(
        Spec(model=lab.model_dir("grouped"), experts=2, environment=environment, arguments=("--restart", "never"))
    )
    client, expected = connect(cluster), prompts_for(lab.oracle("grouped"))
    async with streaming(client, expected) as streams:
        cluster.send("controller-0", signal.SIGKILL)
        await streams.all_right()
    await logged(cluster, "attention-0", "controller_lost")
    # Nothing new is known, and nothing has changed: new requests are served too.
    answers = await asyncio.gather(*(client.complete(each.prompt) for each in expected))
    assert [answer.text for answer in answers] == [each.text for each in expected]

    async with streaming(client, expected) as streams:
        cluster.send("expert-0", signal.SIGKILL)
        for answer, text in zip(await streams.answers(), streams.expected, strict=True):
            if answer.error is None:  # it was done before
                assert answer.text == text
                continue
            assert text.startswith(answer.text)
            assert answer.error["code"] == "experts_unavailable"
            assert "expert-0" in answer.error["message"]
        assert any(answer.error for answer in await streams.answers())
    late = await client.complete(expected[0].prompt)
    assert late.status == 503
    assert "Retry-After" in late.headers
    assert late.error is not None
    assert late.error["code"] in ("experts_unavailable", "unavailable")

    cluster.children()
    cluster.process.send_signal(signal.SIGKILL)
    assert cluster.wait_gone(LIMIT_S) == [], "a killed janus up leaves processes behind"
